"""`fxprune run` where there is no ONNX file: the .pt2 and the report are written all the same, and say whose fault it is."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture, save_pt2
from fxprune.tools.commands import run
from fxprune.tools.commands.main import main


class Decomposed(nn.Module):
    """A net with an operator that ONNX lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.down(self.up(x).relu())
        triangle: Tensor = torch.linalg.qr(hidden.T @ hidden + torch.eye(4))[1]
        return triangle.abs()


def test_what_torch_alone_can_read_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "warm_up", lambda: None)
    torch.manual_seed(0)
    save_pt2(capture(Decomposed(), (torch.randn(3, 4),)), tmp_path / "net.pt2")
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "net.pt2"), "-p", "ffn(ratio=0.5)", "-o", str(out)]) == 1
    names = {file.name for file in out.iterdir()}
    assert {"model.pt2", "selection.json", "report.json", "report.md", "report.html"} <= names
    assert "model.onnx" not in names
    report = json.loads((out / "report.json").read_text())
    assert report["after"]["parameters"] < report["before"]["parameters"]
    why = report["onnx"]["failed"]
    assert "at aten.linalg_qr.default" in why
    assert "torch's own export of the unpruned model fails, too" in why
    assert "model.onnx | none" in (out / "report.md").read_text()
    assert capture(str(out / "model.pt2"))(torch.randn(3, 4)).shape == (4, 4)
    assert "no model.onnx: " in capsys.readouterr().err
