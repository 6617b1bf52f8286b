"""`--calibration` and the options beside it: help from the table of forms, and refusals before any work."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from PIL import Image

from fxprune.tools.commands.budget_option import add_budget_options, asked_data
from fxprune.tools.commands.main import main
from fxprune.tools.inputs.calibration.forms import FORMS
from fxprune.tools.inputs.calibration.request import Asked


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_budget_options(parser)
    return parser.parse_args(arguments)


def test_the_help_names_every_form() -> None:
    parser = argparse.ArgumentParser()
    add_budget_options(parser)
    told = re.sub(r"\s+", " ", parser.format_help())
    assert [form.written for form in FORMS if form.written not in told] == []


def test_options_become_what_is_asked() -> None:
    assert asked_data(parsed("--calibration", "a")) == [Asked("a", 512, 128, "", None)]
    given = parsed(
        "--calibration=a", "--rows=3", "--length=4", "--image-normalization=half", "--sampling-rate=8000"
    )
    assert asked_data(given) == [Asked("a", 3, 4, "half", 8000)]
    both = asked_data(parsed("--calibration=a", "--held-back=b", "--rows=3"))
    assert both == [Asked("a", 3, 128, "", None), Asked("b", 3, 128, "", None, "--held-back")]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--held-back", "b.npz"],
            "--held-back b.npz judges what is fitted on calibration data: give --calibration DATA",
        ),
        (
            ["--sampling-rate", "8000"],
            "--sampling-rate 8000 says how calibration data are read: give --calibration DATA",
        ),
        (["--calibration", "photos", "--sampling-rate", "8000"], "--sampling-rate is for a FOLDER of sounds"),
        (
            ["--calibration", "photos", "--image-normalization", "x"],
            "--image-normalization 'x': expected imagenet",
        ),
        (["--calibration", "none"], "the folder none holds nothing to calibrate on"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "none"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    steps = "slim(params=0.5)" if "--calibration" in options else "fold"
    code = main(["run", "py:no.such:model", "-p", steps, *options, "-o", "out"])
    assert (code, sentence in capfd.readouterr().err) == (2, True)
