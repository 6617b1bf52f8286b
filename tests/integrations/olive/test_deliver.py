"""Delivery within another tool's workflow: a proven file, its selection, and the figures of the proof."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune import FxpruneError, Program, Selection, capture, parse_pipeline
from fxprune.calibration import check_calibration
from fxprune.integrations.olive.deliver import deliver, summary


def program() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6)).eval()
    return capture(model, (torch.randn(5, 6),))


IDLE = "found nothing to remove: it takes exact axes of role heads; the graph has 1 ffn (pass ffn)"


def test_a_delivery_holds_the_file_the_selection_and_figures_as_plain_data(tmp_path: Path) -> None:
    made = deliver(program(), parse_pipeline("ffn(ratio=0.5), heads(ratio=0.5)"), tmp_path, opset=20)
    figures = made.figures
    assert made.model.read_bytes()
    selection = Selection.load(made.selection)
    assert [len(selection[name] or ()) for name in selection] == [8]
    assert figures["before"] == {"parameters": 214, "bytes": 856, "flops": 1920}
    assert figures["after"] == {"parameters": 110, "bytes": 440, "flops": 960}
    assert figures["relative"] <= figures["bar"]
    assert figures["change"] > 0.01
    assert (figures["exact"], figures["inexact"], figures["refitted"]) == (1, 0, 0)
    assert figures["onnx"]["relative"] < 1e-5
    assert figures["onnx"]["opset"] == 20
    assert figures["notes"] == [f"heads(ratio=0.5) {IDLE}"]
    assert json.loads(json.dumps(figures)) == figures


def test_the_summary_says_what_was_proved_and_what_was_idle(tmp_path: Path) -> None:
    made = deliver(program(), parse_pipeline("ffn(ratio=0.5), heads(ratio=0.5)"), tmp_path)
    text = summary({**made.figures, "relative": 1e-7, "onnx": {"relative": 2e-7}})
    assert text == (
        "214 parameters became 110, and 0.00 MFLOP 0.00; pruned against zeroed original 1.0e-07 over 1 exact axes,"
        f" ONNX Runtime against program 2.0e-07; heads(ratio=0.5) {IDLE}"
    )


def test_files_of_an_earlier_delivery_are_replaced(tmp_path: Path) -> None:
    first = deliver(program(), parse_pipeline("ffn(ratio=0.5)"), tmp_path).model.stat().st_size
    assert deliver(program(), parse_pipeline("ffn(ratio=0.25)"), tmp_path).model.stat().st_size > first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "selection.json"]


def test_data_that_no_pass_uses_are_refused(tmp_path: Path) -> None:
    whole = program()
    data = check_calibration(whole, [[torch.randn(5, 6)]])
    with pytest.raises(FxpruneError) as caught:
        deliver(whole, parse_pipeline("fold"), tmp_path, data)
    assert str(caught.value) == "no pass of 'fold' uses calibration data; leave the data out"


def test_data_reach_the_passes(tmp_path: Path) -> None:
    whole = program()
    data = check_calibration(whole, [[torch.randn(5, 6)] for _ in range(4)])
    made = deliver(whole, parse_pipeline("slim(params=0.6)"), tmp_path, data)
    assert made.figures["after"]["parameters"] <= 0.6 * 214
    assert made.figures["refitted"] > 0
