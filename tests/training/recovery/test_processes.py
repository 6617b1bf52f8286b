"""Several processes recover one program: each on its share of the rows, all with the same weights in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_two_processes_recover_the_same_program(tmp_path: Path) -> None:
    tests = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "support/recovered_in_two.py", str(tmp_path)],
        cwd=tests, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}:{os.environ.get('PYTHONPATH', '')}"},
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one["processes"] == 2
    assert one["after"] < 0.6 * one["before"]
    assert one["again"] == pytest.approx(one["after"])  # a run that is complete is not trained again
    for key in ("before", "after", "again", "weights"):
        assert one[key] == pytest.approx(other[key])
