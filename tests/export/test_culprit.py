"""The culprit of a file that is missing or wrong: the operator and the user's line, and the fault of torch's own export."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture, export_onnx
from fxprune.errors import ExportError
from fxprune.export import onnx_rewrites
from fxprune.export.culprit import first_difference, original_fault

aten = torch.ops.aten
square, image = torch.eye(3) + 1, torch.linspace(0, 1, 48).reshape(1, 3, 4, 4)


class Absent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        triangle: Tensor = torch.linalg.qr(x.relu() + 1)[1]
        return triangle.abs()


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(x.relu() + 1, 2) * 2


class Right(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() + 1


def test_an_operator_that_onnx_lacks_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"at aten\.linalg_qr\.default \[.*test_culprit\.py:\d+ in forward: "
    ):
        export_onnx(capture(Absent(), (square,)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_first_value_that_differs_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {key: row for key, row in onnx_rewrites.REWRITES.items() if key is not aten.pixel_unshuffle}
    monkeypatch.setattr(onnx_rewrites, "REWRITES", rows)
    with pytest.raises(
        ExportError, match=r"differs is that of aten\.pixel_unshuffle\.default \[.*test_culprit"
    ):
        export_onnx(capture(Wrong(), (image,)), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("model", "given", "sentence"),
    [
        (Absent, square, "torch's own export of the unpruned model fails, too: No ONNX function found"),
        (
            Wrong,
            image,
            "torch's own export of the unpruned model is wrong, too, at aten.pixel_unshuffle.default",
        ),
        (Right, square, "torch's own export of the unpruned model is right: this is a fault of fxprune"),
    ],
)
def test_torchs_own_export_is_told_apart(
    model: Callable[[], nn.Module], given: Tensor, sentence: str
) -> None:
    assert original_fault(capture(model(), (given,)), 18).startswith(sentence)


def test_where_nothing_differs_nothing_is_named() -> None:
    assert first_difference(capture(Right(), (square,)), 18) == ""
