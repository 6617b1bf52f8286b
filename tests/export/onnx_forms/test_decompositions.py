"""Decompositions node by node: what torch's exporter gets by tracing a whole graph anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry

from fxprune import capture, export_onnx
from fxprune.export.exported_program import lift
from fxprune.export.onnx_operators import quick_export
from support.texts import Net
from zoo.nets import build

AUTO = torch.export.Dim.AUTO


def decomposed(exported: ExportedProgram) -> ExportedProgram:
    """As the exporter does it."""
    with quick_export():
        return _fx_passes.decompose_with_registry(exported, ONNXRegistry.from_torchlib(opset_version=18))


def lines(exported: ExportedProgram) -> list[str]:
    called = [node for node in exported.graph.nodes if node.op == "call_function"]
    return [f"{node.name} = {getattr(node.target, '__name__', node.target)}{node.args}" for node in called]


def lifted(forward: Callable[..., Any], *inputs: Tensor, **parts: nn.Module) -> ExportedProgram:
    free = tuple({0: AUTO} for _ in inputs)
    return lift(capture(Net(forward, **parts).eval(), inputs, dynamic_shapes=free))


def test_before_and_after() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        wide = x.flatten(1).to(torch.float64).square()
        return wide.reshape(-1, 2, 4)

    exported = lifted(forward, torch.randn(3, 4, 2))
    assert lines(exported) == [
        "flatten = flatten.using_ints(x, 1)",
        "to = to.dtype(flatten, torch.float64)",
        "square = square.default(to,)",
        "reshape = reshape.default(square, [-1, 2, 4])",
    ]
    assert lines(decomposed(exported)) == [
        "sym_size_int = sym_size.int(x, 0)",
        "view = view.default(x, [sym_size_int, 8])",
        "_to_copy = _to_copy.default(view,)",
        "pow_1 = pow.Tensor_Scalar(_to_copy, 2)",
        "view_1 = view.default(pow_1, [-1, 2, 4])",
    ]


def test_a_size_that_is_known_is_not_read_again() -> None:
    exported = decomposed(lifted(lambda net, x: (x.flatten(1), x.exp().flatten(1)), torch.randn(3, 4, 2)))
    assert sum(line.startswith("sym_size") for line in lines(exported)) == 1


def test_a_result_is_named_by_the_node_that_gives_it_now() -> None:
    exported = decomposed(
        lifted(
            lambda net, x: (x.relu().flatten(1), net.drop(x.exp())), torch.randn(3, 4, 2), drop=nn.Dropout()
        )
    )
    names = [spec.arg.name for spec in exported.graph_signature.output_specs]
    (output,) = exported.graph.find_nodes(op="output")
    assert names == [node.name for node in output.args[0]] == ["view", "exp"]


def test_results_of_an_operator_of_several_are_outputs(tmp_path: Path) -> None:
    program = capture(Net(lambda net, x: torch.var_mean(x.flatten(1), -1)).eval(), (torch.randn(3, 4, 2),))
    assert export_onnx(program, tmp_path / "model.onnx").relative <= 1e-6
    exported = decomposed(lift(program))
    names = [spec.arg.name for spec in exported.graph_signature.output_specs]
    (output,) = exported.graph.find_nodes(op="output")
    assert names == [node.name for node in output.args[0]]
    assert "var_mean" not in {node.name for node in exported.graph.nodes}


@pytest.mark.parametrize(
    ("name", "whole"), [("resnet", 0), ("gru-cell", 1), ("slice-write", 1), ("masked-nodes", 1)]
)
def test_what_writes_or_has_sizes_of_values_is_traced_as_a_whole(
    name: str, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[ExportedProgram] = []
    monkeypatch.setattr(
        _fx_passes, "decompose_with_registry", lambda exported, registry: traced.append(exported)
    )
    model, inputs = build(name)
    exported = lift(capture(model, (), inputs))
    before = lines(exported)
    decomposed(exported)
    assert len(traced) == whole
    assert (lines(exported) == before) == bool(whole)
