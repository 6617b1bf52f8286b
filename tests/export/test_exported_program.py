"""Exported programs: changes of a graph without which ONNX can't express it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, export_onnx, shrink
from fxprune.export.exported_program import for_onnx, lift
from fxprune.ir import inference, quiet


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
