"""`--runtime`: measurements, the help text, and refusals."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from fxprune import capture
from fxprune.export import export_onnx
from fxprune.runtimes import RUNTIMES
from fxprune.runtimes.timing import FEWEST_RUNS
from fxprune.tools.commands import bench
from fxprune.tools.commands.main import main


def test_bench_measures_in_openvino(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    program = capture(nn.Linear(8, 16), (torch.randn(3, 8),), dynamic_shapes=({0: Dim.AUTO},))
    file = export_onnx(program, tmp_path / "model.onnx").path
    monkeypatch.setattr(bench, "_POINTS", ({"batch": 2, "length": 3},))
    command = ["bench", str(file), "--seconds", "0.02", "--runtime", "openvino"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["session"] == {
        "threads": 1,
        "optimization": "all",
        "runtime": "openvino",
        "peepholes": True,
    }
    (entry,) = told["points"][0]["files"].values()
    assert entry["ms"]["runs"] >= FEWEST_RUNS
    assert entry["flops"] == 2 * 2 * 8 * 16
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("OpenVINO on the CPU, 1 thread; against ")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("torch", "PyTorch runs .pt2 files, and ONNX files are measured here, by: onnxruntime, openvino"),
        ("nothing", "no runtime 'nothing'; runtimes: onnxruntime, openvino, torch"),
    ],
)
def test_the_command_line_refuses_other_runtimes(
    name: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "model.onnx", "--runtime", name]) == 2
    assert sentence in capsys.readouterr().err


def test_the_help_is_read_from_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"openvino: {RUNTIMES['openvino'].help}" in told
    assert "torch" not in told
