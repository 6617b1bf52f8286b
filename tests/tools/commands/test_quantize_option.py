"""`fxprune run --quantize`: a second file, its figures in the report, and refusals before any work."""

import json
from pathlib import Path

import onnx
import pytest

from fxprune.tools.commands import quantize_option, run
from fxprune.tools.commands.main import main

SAMPLE = """
import torch
from torch import nn
from torch.export import Dim

def net():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    return layers, (torch.randn(3, 64),), {}, ({0: Dim.AUTO},)

def data():
    for _ in range(3):
        yield (torch.randn(4, 64),)
"""
COMMAND = ["run", "py:quantized_models:net", "-p", "ffn(ratio=0.5)", "-o", "out"]
DATA = ["--calibration", "py:quantized_models:data"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a model beside it; measuring is cut short."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "quantized_models.py").write_text(SAMPLE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.setattr(run, "_SECONDS_A_POINT", 0.02)
    monkeypatch.setattr(quantize_option, "_SECONDS_A_POINT", 0.02)
    monkeypatch.setattr("fxprune.tools.commands.run.warm_up", lambda: None)
    return tmp_path / "place"


@pytest.mark.parametrize(
    ("how", "data", "compared_on"),
    [("dynamic", [], "example inputs"), ("static", DATA, "calibration data")],
)
def test_a_second_file_and_what_it_is_worth(
    how: str, data: list[str], compared_on: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, "--quantize", how, *data]) == 0
    shown = capsys.readouterr().out
    title = f"Quantized ({how}): model.int8.onnx beside model.onnx, compared on the {compared_on}"
    assert title in " ".join(shown.split())
    assert title in (place / "out" / "report.md").read_text()
    report = json.loads((place / "out" / "report.json").read_text())
    told = report["quantized"]
    assert told["how"] == how
    assert told["bytes"]["before"] == (place / "out" / "model.onnx").stat().st_size
    assert told["bytes"]["after"] == (place / "out" / "model.int8.onnx").stat().st_size
    assert told["bytes"]["after"] < 0.5 * told["bytes"]["before"]
    assert [entry["point"] for entry in told["latency"]] == [{"batch": 1}, {"batch": 8}]
    assert all(0 < row["relative"] < 0.05 for row in told["agreement"].values())
    kinds = {node.op_type for node in onnx.load(place / "out" / "model.int8.onnx").graph.node}
    assert ("DynamicQuantizeLinear" if how == "dynamic" else "QuantizeLinear") in kinds


def test_without_the_option_nothing_is_quantized(place: Path) -> None:
    assert main(COMMAND) == 0
    assert not (place / "out" / "model.int8.onnx").exists()
    assert json.loads((place / "out" / "report.json").read_text())["quantized"] is None


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--quantize", "static"], "--quantize static needs --calibration FILE"),
        (["--quantize", "static", *DATA, "--tokens", "ids.txt"], "can't be had with --tokens"),
        ([*DATA, "-p", "fold"], "no pass of 'fold' uses data"),
    ],
)
def test_what_can_not_be_is_said_before_any_work(
    more: list[str], sentence: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, *more]) == 2
    assert sentence in capsys.readouterr().err
    assert not (place / "out").exists()
