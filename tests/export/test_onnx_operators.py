"""ONNX forms of operators that torch's exporter has none for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture, export_onnx


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
