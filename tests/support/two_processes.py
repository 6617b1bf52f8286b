"""Two processes under torchrun, for tests of what they do together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def run_in_two(worker: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a module of tests/support in two processes, with a folder as its argument; return what each wrote to RANK.json there."""
    path = f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", f"support/{worker}.py", str(folder)],
        cwd=TESTS, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    one, other = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return one, other
