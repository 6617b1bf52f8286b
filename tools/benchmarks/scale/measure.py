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

import fxprune
from fxprune.calibration import Calibration
from fxprune.calibration.memory import memory_need
from fxprune.calibration.segments import SEGMENT_BYTES
from fxprune.cost.run_time import run_work, total_work
from fxprune.ir import Selection
from fxprune.passes import parse_pipeline
from fxprune.pipeline import Context, Progress
from fxprune.rewrite.shrink import kept_masks
from fxprune.storage.limits import limited, parse_bytes, used_memory
from fxprune.storage.shards import save_sharded
from fxprune.tools.benchmarks.scale.checkpoints import meta_model
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


def predicted_run(shape: str, data: tuple[int, int]) -> dict[str, Any]:
    """Return the seconds of capture and of a plan of a shape on the meta device, and what a run from disk would take, by segment.

    `data` are the calibration rows and the tokens of a row.
    """
    ids = torch.ones(2, 13, dtype=torch.int64, device="meta")
    model, start = meta_model(shape), time.perf_counter()
    program = fxprune.capture(model, kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    captured = time.perf_counter()
    analysis = fxprune.analyze(program)
    kept_masks(analysis, Selection({a.name: range(0, a.size, 2) for a in analysis.axes if a.exact}))
    planned = time.perf_counter()
    rows = data[0] * data[1] / ids.numel()
    batch = {node.name: ids.new_ones(_ROWS_A_BATCH, data[1]) for node in program.placeholders()}
    need = memory_need(program, Calibration((batch,) * (data[0] // _ROWS_A_BATCH)), SEGMENT_BYTES)
    parts = run_work(program, None, SEGMENT_BYTES, rows)
    return {
        "seconds": {"capture": captured - start, "plan": planned - captured},
        "weights": program.parameter_bytes(),
        "memory": need.memory,
        "disk": need.disk,
        "time": total_work(parts).seconds(),
        "segments": [(each.first, each.weights, each.work.seconds()) for each in parts],
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
