"""ONNX forms of operators that torch's exporter has none for."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from fxprune import Program, capture, export_onnx
from fxprune.export import onnx_operators
from zoo.nets import build


class Experts(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, 6, 4))

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        order = chosen.argsort()
        ends = (chosen[:, None] <= torch.arange(self.weight.shape[0])).sum(0).int()
        out: Tensor = torch.ops.transformers.grouped_mm_fallback(x[order], self.weight, ends)
        return out[order.argsort()]


pytest.importorskip("transformers.integrations.moe")  # defines the operator


@pytest.mark.parametrize(
    ("count", "chosen"),
    [
        (4, [0, 1, 2, 3, 0, 1, 2]),
        (4, [3, 3, 3, 3, 3, 3, 3]),  # three experts have no row
        (5, [1, 1, 4, 4, 1, 4, 1]),
        (1, [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_rows_go_through_the_matrix_of_their_expert(count: int, chosen: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, picked = torch.randn(7, 6), torch.tensor(chosen)
    model = Experts(count)
    by_hand = torch.stack([row @ model.weight[expert] for row, expert in zip(x, chosen, strict=True)])
    program = capture(model, (x, picked))
    assert torch.allclose(program(x, picked), by_hand, atol=1e-5)
    made = export_onnx(program, tmp_path / "model.onnx")
    assert made.relative <= 1e-6


def test_the_table_of_forms_is_made_once_and_what_is_added_stays_with_its_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_operators, "_TABLES", {})
    made = list[int]()
    honest = ONNXRegistry.from_torchlib

    def counted(opset_version: int) -> ONNXRegistry:
        made.append(opset_version)
        return honest(opset_version=opset_version)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(counted))
    relu = torch.ops.aten.relu.default
    with onnx_operators.quick_export():
        one = ONNXRegistry().from_torchlib(opset_version=18)
        count = len(one.get_decomps(relu))
        one.register_op(relu, lambda x: x)
        two, other = (ONNXRegistry.from_torchlib(opset_version=opset) for opset in (18, 20))
    assert made == [18, 20]
    assert [len(each.get_decomps(relu)) for each in (one, two)] == [count + 1, count]
    assert (two.opset_version, other.opset_version) == (18, 20)
    assert ONNXRegistry.from_torchlib is counted


class _Gated(nn.Module):
    """A layer of attention with RMS norms, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.out = nn.RMSNorm(8), nn.Linear(8, 16), nn.Linear(8, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.gate(self.norm(self.layer(x))).chunk(2, -1)
        out: Tensor = self.out(nn.functional.silu(one) * two.clamp(0, 6)) + x
        return out


def same_operators(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a quick export and a plain one write the same operators."""
    quick = written(program, folder / "quick.onnx")
    monkeypatch.setattr("fxprune.export.onnx.quick_export", contextlib.nullcontext)
    return written(program, folder / "plain.onnx") == quick


def written(program: Program, path: Path) -> list[tuple[str, int]]:
    """The operators of a file, and how often each is there."""
    export_onnx(program, path)
    return sorted(Counter(node.op_type for node in onnx.load(path).graph.node).items())


@pytest.mark.parametrize(
    "name",
    [
        *("resnet", "unet", "shuffle", "scatter", "rms", "torch-attention", "experts-switch", "fft", "folded-patches", "slice-write"),
        *("gru-cell", "masked-nodes"),
    ],
)  # fmt: skip
def test_a_quick_export_writes_the_same_operators(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norms, views, casts, sums by index, one-hot and others are decomposed, as torch does by tracing all anew."""
    model, inputs = build(name)
    program = capture(model, (), inputs)
    assert same_operators(program, tmp_path, monkeypatch)


def test_dynamic_sizes_are_the_same_in_a_quick_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    program = capture(_Gated().eval(), (torch.randn(3, 5, 8),), dynamic_shapes=free)
    assert same_operators(program, tmp_path, monkeypatch)


def test_patterns_of_several_results_look_at_nodes_of_their_operator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxscript.rewriter._matcher import SimplePatternMatcher

    asked, honest = list[tuple[bool, str]](), SimplePatternMatcher.match

    def counted(self: SimplePatternMatcher, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        asked.append((self.pattern.has_single_output_node, node.op_type))
        return honest(self, model, graph, node, **options)

    monkeypatch.setattr(SimplePatternMatcher, "match", counted)
    program = capture(_Gated().eval(), (torch.randn(3, 5, 8),))
    export_onnx(program, tmp_path / "model.onnx")
    kinds = {operator for single, operator in asked if not single}
    assert len({operator for single, operator in asked if single}) > 10
    assert len(kinds) <= 3
