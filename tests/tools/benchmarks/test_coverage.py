"""The coverage benchmark: a few architectures through all of its stages, and a page with every failure."""

import json
import re
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune import capture
from fxprune.errors import CaptureError, ExportError
from fxprune.frontend import library_patches
from fxprune.tools.benchmarks import coverage
from fxprune.tools.benchmarks.coverage_page import Record, is_right, render_coverage
from support.in_parts import load
from zoo import hf, onnx_check
from zoo.check import Outcome, captured, check_with_model, halved
from zoo.compare import difference, outputs_in_model

transformers = pytest.importorskip("transformers")

RECORD = asdict(
    Outcome(
        "Net", "ok", exact=3, inexact=1, relative=2e-7, change=0.5, order="same", onnx="agrees", onnx_shapes=2
    )
)


def detector() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model, (image,), _ = load()
    return model, {"x": image}


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {name} "))


@pytest.mark.slow
def test_architectures_go_through_all_stages(tmp_path: Path) -> None:
    names = ["BertForMaskedLM", "ResNetForImageClassification", "Wav2Vec2ForCTC"]
    target, kept = tmp_path / "page.md", tmp_path / "records"
    assert coverage.main([*names, "-o", str(target), "--records", str(kept), "--workers", "1"]) == 0
    text, records = target.read_text(), [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(r["status"], r["order"], r["onnx"], r["onnx_shapes"]) for r in records] == [
        ("ok", "same", "agrees", 2)
    ] * 3
    assert all(0 < record["onnx_relative"] < 1e-4 for record in records)
    assert (
        "agrees with 3 of 3 halved programs whose original exports and runs right**, with 3 of them" in text
    )
    assert "The axes are the same in a shuffled order (three of them): 3 of 3." in text


def test_records_of_an_earlier_run_are_not_run_again(tmp_path: Path) -> None:
    kept, target = tmp_path / "records", tmp_path / "page.md"
    kept.write_text(json.dumps({**RECORD, "name": "BertForMaskedLM"}) + "\n")
    assert coverage.main(["BertForMaskedLM", "-o", str(target), "--records", str(kept), "--no-onnx"]) == 0
    assert "| 3 | 1 | 2.0e-07 | 5.0e-01 |" in row(target.read_text(), "BertForMaskedLM")


def test_only_what_is_asked_for_is_run_again_and_the_page_has_all(tmp_path: Path) -> None:
    kept, target = tmp_path / "records", tmp_path / "page.md"
    old = [
        {**RECORD, "name": name, "exact": 77, "made": "long ago"}
        for name in ("BertForMaskedLM", "OPTForCausalLM")
    ]
    kept.write_text("".join(f"{json.dumps(record)}\n" for record in old))
    asked = ["--records", str(kept), "-o", str(target), "--no-onnx", "--workers", "1"]
    assert coverage.main([*asked, "--only", "BertForMaskedLM"]) == 0
    text, records = target.read_text(), [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(r["name"], r["exact"] == 77) for r in records] == [
        ("OPTForCausalLM", True),
        ("BertForMaskedLM", False),
    ]
    assert re.search(r"- Rows by day and commit: \d{4}-\d\d-\d\d( \w+)?: 1; long ago: 1\.", text)


def test_parts_are_told_from_the_whole() -> None:
    parts = {**RECORD, "name": "Parts", "parts": 3, "inside": 0.9, "whole": "its own loop", "made": "today"}
    text = render_coverage([{**RECORD, "made": "today"}, parts])
    assert "- Captured whole: 1; in parts: 1, with 90.0% of the parameters in the median." in text
    assert row(text, "Parts").startswith("| Parts | ok | in 3 parts, 90.0% | 3 | 1 |")
    assert row(text, "Net").startswith("| Net | ok | whole | 3 | 1 |")
    assert "## Captured in parts: why not whole\n\n- Parts: its own loop" in text


def test_a_model_in_parts_is_checked_in_the_whole_model() -> None:
    outcome, made = check_with_model("Detector", detector, dynamic=False)
    assert (outcome.status, outcome.parts, outcome.inside) == ("ok", 6, 1.0)
    assert "torch.export could not capture Detector" in outcome.whole
    assert outcome.parameters == sum(parameter.numel() for parameter in detector()[0].parameters())
    assert outcome.slim < outcome.parameters
    assert made is not None
    slim = halved(made[1])
    assert difference(outputs_in_model(slim), outputs_in_model(made[1])) > 1e-3


def test_a_stage_that_takes_too_long_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_check, "export_onnx", lambda *_: time.sleep(60))
    (record,) = coverage.check_all(["BertForMaskedLM"], coverage.Limits(check=120, later=5), workers=1)
    assert (record["status"], record["order"], record["onnx"]) == ("ok", "same", "timeout")
    assert record["onnx_reason"] == "not done within 5 s"


@pytest.mark.slow
def test_what_transformers_patches_is_captured_and_agrees_with_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mask of T5Gemma2 is built with vmap, which leaves pieces in the graph that can't run."""
    architecture = hf.ROWS["T5Gemma2ForConditionalGeneration"]
    model, kwargs = architecture.build()
    assert captured(model, kwargs, dynamic=False).output_names()[0] == "logits"
    monkeypatch.setattr(library_patches, "LIBRARIES", ())
    with pytest.raises(CaptureError, match=r"vmap|can't run outside of its transform"):
        captured(model, kwargs, dynamic=False)


def test_a_failure_of_ours_is_told_from_one_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(3, 4)
    program = capture(model, kwargs={"input": torch.rand(2, 3)})

    def fails(*_: object) -> None:
        raise ExportError("no such luck")

    monkeypatch.setattr(onnx_check, "export_onnx", fails)
    ours = onnx_check.agreement(model, program, program)
    assert ours.said == "fails"
    assert re.fullmatch(r"the original agrees to \d\.\de[+-]\d\d; pruned: no such luck", ours.reason)
    monkeypatch.setattr(onnx_check, "_plain", fails)
    theirs = onnx_check.agreement(model, program, program)
    assert (theirs.said, theirs.reason) == ("the original does not export", "no such luck")


def fake(said: str, reason: str = "because") -> Record:
    return {**RECORD, "onnx": said, "onnx_reason": reason}


@pytest.mark.parametrize(
    ("record", "cell", "section", "right"),
    [
        (fake("agrees"), "0.0e+00", None, True),
        (fake("the original does not export"), "not exported", "torch's reason", True),
        (fake(onnx_check.DIFFERS_TOO), "differs on the original too", "differs on the original, too", True),
        (fake(onnx_check.ROUNDS), "float32 rounds more", "further from float64 than the bar", True),
        (fake("fails"), "**fails**", "the original exports, the pruned program fails", False),
        (fake("timeout"), "not in time", "not done in time", True),
        (fake("crash"), "**crash**", "the process died", False),
    ],
)
def test_the_page_says_what_onnx_runtime_said(
    record: Record, cell: str, section: str | None, right: bool
) -> None:
    text = render_coverage([record])
    assert row(text, "Net").endswith(f"| {cell} |")
    assert section is None or (section in text and "- Net: because" in text)
    assert is_right(record) == right


def test_other_axes_in_another_order_are_listed_and_wrong() -> None:
    record = {**RECORD, "order": "other axes with seed 1"}
    assert not is_right(record)
    assert "(three of them): 0 of 1." in render_coverage([record])
    assert "- Net: other axes with seed 1" in render_coverage([record])
