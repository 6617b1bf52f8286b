"""One run: open a checkpoint, prune it and prove the result, in a process of its own, whose peak of memory is recorded."""

from __future__ import annotations

import itertools
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fxprune.passes import parse_pipeline
from fxprune.pipeline import Context, Progress
from fxprune.storage.limits import limited, parse_bytes, used_memory
from fxprune.storage.shards import save_sharded
from fxprune.tools.commands.console import progress
from fxprune.tools.inputs import models

_ROWS_A_BATCH = 4


def pruned(checkpoint: Path, pipeline: str, data: tuple[int, int, int], memory: str) -> dict[str, Any]:
    """Return the seconds of each part of a run, its peak of resident memory, and what was left of the model.

    `data` are the calibration rows, the tokens of a row, and the different tokens that they are drawn from.
    """
    times, started = {"start": time.perf_counter()}, used_memory()
    with limited(1):  # too little for any model: it stays on disk
        program = models.load(f"hf:{checkpoint}").capture(())
    times["capture"] = time.perf_counter()
    with limited(parse_bytes(memory)):
        said, names = _Said(), program.input_names()
        batches = [_batch(names, seed, data[1:]) for seed in range(data[0] // _ROWS_A_BATCH)]
        result = parse_pipeline(pipeline).run(program, Context(data=batches, observe=said))
        times["prune"] = time.perf_counter()
        proof = result.proof
        times["proof"] = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            save_sharded(result.program.tensors(), Path(folder) / "slim")
        times["write"] = time.perf_counter()
    marks = list(times.items())
    return {
        "seconds": {name: now - before for (_, before), (name, now) in itertools.pairwise(marks)},
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "before": started,
        "predicted": said.memory,
        "weights": program.parameter_bytes(),
        "on_disk": program.is_mapped(),
        "left": result.program.parameter_count() / program.parameter_count(),
        "proof": proof.status,
        "relative": proof.relative,
    }


def _batch(names: tuple[str, ...], seed: int, sizes: tuple[int, ...]) -> Mapping[str, torch.Tensor]:
    length, tokens = sizes
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, tokens, (_ROWS_A_BATCH, length), generator=random)
    return {name: ids if name == "input_ids" else torch.ones_like(ids) for name in names}


class _Said:
    """Prints what a pass does, at most every 30 seconds, and keeps what was predicted."""

    def __init__(self) -> None:
        self.memory, self._last, self._start = "", 0.0, time.monotonic()

    def __call__(self, told: Progress) -> None:
        if told.stage == "memory":
            self.memory = told.text
        if time.monotonic() - self._last > 30 or told.stage == "memory":
            self._last = time.monotonic()
            gone = self._last - self._start
            progress().print(
                f"{gone:6.0f} s, {used_memory() / 1e9:.2f} GB: {told.stage} {told.text}", markup=False
            )
