"""`fxprune run`: each program on its way is analysed once, and what is compared was written alike."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from fxprune import Program, capture, save_pt2
from fxprune.analysis.dim_inference import walk
from fxprune.rules import Flow
from fxprune.runtimes.base import Timing
from fxprune.tools.commands import run
from fxprune.tools.commands.main import main
from support.tiny import BERT, saved

PIPELINE = "heads(ratio=0.5), ffn(ratio=0.5), fold"


def test_each_program_is_walked_over_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    saved(tmp_path / "model", **BERT)
    walked = list[Program]()  # held, so that no other program gets the same id

    def counted(program: Program) -> Flow:
        walked.append(program)
        return walk(program)

    monkeypatch.setattr("fxprune.analysis.axes.walk", counted)
    monkeypatch.setattr(run, "_POINTS", ({"batch": 2, "length": 5},))
    monkeypatch.setattr(run, "_SECONDS_A_POINT", 0.02)
    monkeypatch.setattr(run, "warm_up", lambda: None)
    assert main(["run", f"hf:{tmp_path / 'model'}", "-p", PIPELINE, "-o", str(tmp_path / "out")]) == 0
    times = Counter(map(id, walked))
    assert set(times.values()) == {1}


def test_a_run_that_removes_nothing_compares_two_equal_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after are written by the same exporter: what is not pruned costs the same."""
    seen = list[bytes]()

    def read(files: dict[str, Path], *_: object) -> dict[str, Timing]:
        seen.extend(file.read_bytes() for file in files.values())
        return dict.fromkeys(files, Timing(1.0, 1.0, 1.0, 1))

    monkeypatch.setattr(run, "_POINTS", ({"batch": 2},))
    monkeypatch.setattr(run, "warm_up", lambda: None)
    monkeypatch.setattr(run, "measure", read)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).eval()
    save_pt2(capture(net, (torch.randn(2, 6),)), tmp_path / "net.pt2")
    command = ["run", str(tmp_path / "net.pt2"), "-p", "ffn(ratio=0.1)", "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert main([*command[:-1], str(tmp_path / "again"), "--allow-noop"]) == 0
    assert len(seen) == 4
    assert len(set(seen)) == 1
