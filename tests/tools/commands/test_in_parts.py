"""`fxprune run` and `explain` on a model that can't be captured whole."""

import json
from pathlib import Path

import pytest

from fxprune.runtimes import open_session
from fxprune.tools.commands.main import main

MODEL = "py:support.in_parts:load"


def test_run_prunes_parts_and_writes_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["run", MODEL, "-p", "channels(ratio=0.5)", "-o", str(out), "--within", "backbone"]) == 0
    told = capsys.readouterr()
    assert "inside: backbone (1,640 parameters): 1 call" in told.err
    report = json.loads((out / "report.json").read_text())
    assert report["after"]["parameters"] == 824
    assert report["verdict"]["in_model"] < 1e-5
    assert "in the whole model" in (out / "report.md").read_text()
    assert sorted(file.name for file in (out / "islands").iterdir()) == ["backbone.onnx", "backbone.pt2"]
    assert [entry.name for entry in open_session(out / "islands" / "backbone.onnx").get_inputs()] == [
        "backbone_x"
    ]


def test_explain_says_what_is_outside(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", MODEL, "--json"]) == 0
    first, *rest = json.loads(capsys.readouterr().out)["notes"]
    assert first.startswith(
        "captured 6 parts of Detector, with 100.0% of its parameters, since: torch.export could"
    )
    assert rest[1] == "inside: head (173 parameters): 2 calls"
