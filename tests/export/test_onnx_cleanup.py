"""ONNX clean-up: what torch's exporter writes is made to fit the operators' definitions."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import capture, export_onnx
from fxprune.export.onnx_cleanup import spread_rotary_caches
from fxprune.runtimes import open_session


def test_before_and_after() -> None:
    """Angles of one row are repeated for every row of the batch."""
    x = value("x", ["batch", 2, 5, 4])
    cos, sin = value("cos", [1, 5, 2]), value("sin", [1, 5, 2])
    rotary = ir.Node("", "RotaryEmbedding", [x, cos, sin], outputs=[value("y", ["batch", 2, 5, 4])])
    graph = ir.Graph([x, cos, sin], rotary.outputs, nodes=[rotary], opset_imports={"": 23})
    model = ir.Model(graph, ir_version=10)
    assert_expected_inline(shown(model), """y = RotaryEmbedding(x, cos, sin)""")
    spread_rotary_caches(model)
    assert_expected_inline(
        shown(model),
        """\
cos_batch = Shape(x)
cos_shape = Concat(cos_batch, cos_ones)
cos_spread = Expand(cos, cos_shape)
sin_batch = Shape(x)
sin_shape = Concat(sin_batch, sin_ones)
sin_spread = Expand(sin, sin_shape)
y = RotaryEmbedding(x, cos_spread, sin_spread)""",
    )


def value(name: str, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def shown(model: ir.Model) -> str:
    """One line per node: what it computes from what."""
    return "\n".join(
        f"{node.outputs[0].name} = {node.op_type}({', '.join(str(each and each.name) for each in node.inputs)})"
        for node in model.graph
    )


class Shadowing(nn.Module):
    """A net whose outputs are called as an input is, and as operators are."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, sample: Tensor, other: Tensor) -> dict[str, Tensor]:
        first = self.one(sample)
        second = first.relu()
        return {"relu": self.two(second) + other, "sample": first + 1, "linear": second * 2, "other": other}


def test_outputs_may_be_called_as_inputs_and_operators_are(tmp_path: Path) -> None:
    """diffusers' U-Nets take a `sample` and return one."""
    program = capture(Shadowing().eval(), (torch.rand(2, 4), torch.rand(2, 4)))
    made = export_onnx(program, tmp_path / "net.onnx")
    opened = open_session(made.path)
    assert [entry.name for entry in opened.get_inputs()] == ["sample", "other"]
    assert [entry.name for entry in opened.get_outputs()] == ["relu", "sample_out", "linear", "other_out"]
    assert made.relative < 1e-5
