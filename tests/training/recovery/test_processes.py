"""Several processes recover one program: each on its share of the rows, all with the same weights in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.two_processes import run_in_two


def test_two_processes_recover_the_same_program(tmp_path: Path) -> None:
    one, other = run_in_two("recovered_in_two", tmp_path)
    assert one["processes"] == 2
    assert one["after"] < 0.6 * one["before"]
    assert one["again"] == pytest.approx(one["after"])  # a run that is complete is not trained again
    for key in ("before", "after", "again", "weights"):
        assert one[key] == pytest.approx(other[key])
