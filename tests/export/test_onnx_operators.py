"""ONNX forms of operators that torch's exporter has none for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture, export_onnx
from fxprune.export import onnx_operators


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
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    monkeypatch.setattr(onnx_operators, "_TABLES", {})
    made = list[int]()
    honest = ONNXRegistry.from_torchlib

    def counted(opset_version: int) -> ONNXRegistry:
        made.append(opset_version)
        return honest(opset_version=opset_version)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(counted))
    relu = torch.ops.aten.relu.default
    with onnx_operators.forms_kept():
        one = ONNXRegistry().from_torchlib(opset_version=18)
        count = len(one.get_decomps(relu))
        one.register_op(relu, lambda x: x)
        two, other = (ONNXRegistry.from_torchlib(opset_version=opset) for opset in (18, 20))
    assert made == [18, 20]
    assert [len(each.get_decomps(relu)) for each in (one, two)] == [count + 1, count]
    assert (two.opset_version, other.opset_version) == (18, 20)
    assert ONNXRegistry.from_torchlib is counted
