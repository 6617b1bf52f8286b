"""Exported programs: changes of a graph without which ONNX can't express it."""

from pathlib import Path
from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune import Program, Selection, analyze, capture, export_onnx, show, shrink
from fxprune.export.exported_program import for_onnx, lift
from fxprune.ir import inference, quiet
from support.texts import Net, mlp


class Grouped(nn.Module):
    """Four query heads on two key and value heads, by torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.query, self.key, self.value)
        query, key, value = (part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return out


def test_grouped_queries_cut_to_one_each_are_exported_as_plain_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = capture(Grouped(), (torch.randn(3, 5, 8),))
    groups = [axis for axis in analyze(program).axes if axis.role == "heads" and axis.size == 2]
    slim = shrink(program, Selection({groups[1].name: [0]}))
    assert export_onnx(slim, tmp_path / "slim.onnx").relative < 1e-5


class MasksInPlace(nn.Module):
    """Writes into a part of a tensor that it made, and one slice leaves its start out."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((4, 4), 2.0)
        mask[:2, :2].fill_(0.5)
        torch.ops.aten.slice.Tensor(mask, 1, None, 1).mul_(3)
        return x @ mask


def test_a_graph_that_writes_in_place_needs_no_second_trace(tmp_path: Path) -> None:
    program = capture(MasksInPlace(), (torch.randn(3, 4),))
    written = [node for node in program.graph.nodes if str(node.target).partition(".")[2].startswith("fill_")]
    assert len(written) == 1
    with quiet(), inference():
        torch.onnx.export(for_onnx(lift(program)), dynamo=True, verbose=False)
    assert export_onnx(program, tmp_path / "m.onnx").relative < 1e-6


def unlifted(made: ExportedProgram) -> Program:
    """The program of an ExportedProgram: its parameters are read by name again, not given as inputs."""
    module = made.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return Program(module, *made.example_inputs)


def test_before_and_after() -> None:
    """A mask is repeated for every query, and dropout is gone."""

    def forward(net: Any, x: Tensor, mask: Tensor) -> Any:
        mixed = nn.functional.scaled_dot_product_attention(x, x, x, mask)
        return x + torch.dropout(mixed, 0.1, net.training)

    made = lift(capture(Net(forward).eval(), (torch.randn(3, 5, 8), torch.zeros(1, 5))))
    assert_expected_inline(
        show(unlifted(made)),
        """\
x: (!3, !5, !8)
mask: (!1, !5)
scaled_dot_product_attention = scaled_dot_product_attention(x, x, x, mask, scale=0.353553) -> (!3, !5, !8)
dropout = dropout(scaled_dot_product_attention, 0.1, False) -> (!3, !5, !8)
add = add(x, dropout) -> (!3, !5, !8)
return add""",
    )
    assert_expected_inline(
        show(unlifted(for_onnx(made))),
        """\
x: (!3, !5, !8)
mask: (!1, !5)
sym_size_int = sym_size(x, 1)
expand_default = expand(mask, [sym_size_int, -1]) -> (!5, !5)
scaled_dot_product_attention = scaled_dot_product_attention(x, x, x, expand_default, scale=0.353553) -> (!3, !5, !8)
add = add(x, scaled_dot_product_attention) -> (!3, !5, !8)
return add""",
    )


def test_before_and_after_of_lift() -> None:
    """Parameters become inputs, before the others; the graph stays as it is."""
    program = capture(mlp(), (torch.randn(3, 8),))
    made = lift(program)
    names = [node.name for node in made.graph.find_nodes(op="placeholder")]
    assert program.input_names() == ("x",)
    assert names == ["p_up_weight", "p_up_bias", "p_down_weight", "p_down_bias", "x"]
    assert show(unlifted(made)) == show(program)
