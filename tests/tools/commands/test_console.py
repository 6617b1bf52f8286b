"""Console: a pipeline's progress is a line of text, or a bar where steps are counted."""

import math
import time

import pytest

from fxprune.pipeline import Progress
from fxprune.tools.commands import console
from fxprune.tools.commands.console import Stages


def test_counted_steps_are_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.Steps, "SECONDS", math.inf)  # only the last of all steps is a line
    stages = Stages()
    with stages.stage("training"):
        stages.observe(Progress("grain(density=0.5)"))
        for step in (1, 2, 3):
            stages.observe(Progress("grain(density=0.5)", "loss 0.100", step, 3))
        stages.observe(Progress("layers(count=1)", "", 4, 4, 0.0))
        stages.observe(Progress("fold"))
    assert capsys.readouterr().err.splitlines() == [
        "grain(density=0.5): 3 of 3, loss 0.100, 0 s left",
        "layers(count=1): 4 of 4, 0 s left",
    ]
    assert list(stages.seconds) == ["training"]


def test_shares_are_percent_and_an_unknown_time_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.Steps, "SECONDS", -1.0)
    stages = Stages()
    stages.observe(Progress("recover", "trying a learning rate of 0.001", 0, 100, percent=True))
    stages.observe(Progress("recover", "held-back loss 0.3 → 0.1, 67% closed", 40, 100, 360.0, percent=True))
    assert capsys.readouterr().err.splitlines() == [
        "recover: 0%, trying a learning rate of 0.001",
        "recover: 40%, held-back loss 0.3 → 0.1, 67% closed, 6 min left",
    ]
    Stages(silent=True).observe(Progress("recover", "", 100, 100, 0.0, percent=True))
    assert capsys.readouterr().err == ""


def test_the_time_left_counts_from_when_the_pass_began(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(console.Steps, "SECONDS", -1.0)
    stages = Stages()
    stages.observe(Progress("grain"))
    now[0] = 10.0
    stages.observe(Progress("grain", "", 1, 4))
    assert capsys.readouterr().err == "grain: 1 of 4, 30 s left\n"
