"""ONNX forms: nets of the operators that a row of `REWRITES` is for, in files that ONNX Runtime runs as torch does."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from fxprune import capture, export_onnx
from fxprune.export.onnx_rewrites import REWRITES
from support.onnx_cases import CASES
from support.texts import Net


@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    function, inputs, rows = CASES[name]
    assert rows <= REWRITES.keys()
    program = capture(Net(lambda _, *given: function(*given)), inputs)
    assert export_onnx(program, tmp_path / "model.onnx").relative <= 1e-5


class _Clipped(nn.Module):
    """Layers of one input, each with bounds of its own in buffers (as in Gemma4's vision tower)."""

    def __init__(self, *bounds: tuple[float, float]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in bounds)
        for layer, (least, most) in zip(self.layers, bounds, strict=True):
            layer.register_buffer("least", torch.tensor(least))
            layer.register_buffer("most", torch.tensor([most]))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x.exp().clamp(layer.least, layer.most)) for layer in self.layers]  # type: ignore[arg-type]


def test_bounds_in_buffers_are_numbers_of_each_clip(tmp_path: Path) -> None:
    program = capture(_Clipped((-float("inf"), 1.5), (0.5, 1.0), (2.0, 1.0)), (torch.randn(3, 4),))
    assert export_onnx(program, tmp_path / "model.onnx").relative <= 1e-5
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert [node.op_type for node in nodes].count("Clip") == 3
