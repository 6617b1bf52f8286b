"""Several processes calibrate together: each on its share of the batches, and all get what one process alone gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxprune.calibration.processes import own_share, splitting
from support.slimmed_in_two import IMPOSSIBLE, PIPELINE, slimmed
from support.two_processes import run_in_two


def test_two_processes_slim_as_one_does(tmp_path: Path) -> None:
    one, other = run_in_two("slimmed_in_two", tmp_path)
    assert one == other
    alone = slimmed(PIPELINE)
    for name in ("selection", "refitted", "trials"):
        assert one["slim"][name] == alone[name]
    assert one["slim"]["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-4)
    assert one["impossible"] == slimmed(IMPOSSIBLE)
    assert "can't be reached" in one["impossible"]["refused"]


def test_batches_are_dealt_out_and_a_few_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert own_share("abcde") == (dict(enumerate("abcde")), False)  # no pass that splits runs
    with splitting():
        assert own_share("abcde") == ({1: "b", 4: "e"}, True)
        assert own_share("ab") == ({0: "a", 1: "b"}, False)
