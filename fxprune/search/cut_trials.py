"""Trials of cuts: how far a program's outputs move on a few rows without some units or a branch; here, or on an executor.

A trial is plain data, so that any executor of `concurrent.futures` (processes, Dask, Ray) can run it.
"""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.analysis import analyze
from fxprune.calibration import Calibration, Objective
from fxprune.calibration.data import Batch, run_batch, shortened
from fxprune.calibration.memory import live_limit
from fxprune.calibration.prefixes import Prefixes
from fxprune.calibration.repair import repair
from fxprune.errors import FxpruneError, UsageError
from fxprune.export import save_pt2
from fxprune.frontend.capture import capture
from fxprune.ir import Program, Selection, describe_error
from fxprune.ir.program import container_modules
from fxprune.ir.signature import required_outputs
from fxprune.rewrite.apply import apply
from fxprune.rewrite.bypass import bypass
from fxprune.storage.devices import compute_device, computing_on, to_device

_ROWS = 48
"""Approximate number of rows on which outputs are compared, and the least on which readers are re-fitted."""

NUMBERS = 1 << 24
"""Approximate limit of output elements in all: a language model gives millions per row, and few rows suffice."""


@dataclass(frozen=True)
class CutTrial:
    """Trial of a selection (its JSON text), or of a program without a branch (the name of its region)."""

    selection: str = ""
    branch: str = ""


@dataclass(frozen=True, eq=False)
class TrialSetting:
    """What trials have in common: the program, a few calibration rows, how many of each batch are compared, objective and repair."""

    program: Program
    few: Calibration
    each: int
    objective: Objective
    how: str


def trial_setting(program: Program, data: Calibration, objective: Objective, how: str) -> TrialSetting:
    """Return the setting of trials on rows spread over the calibration data, so few that outputs stay small."""
    first = data.batches[0]
    a_row = sum(map(math.prod, _sizes(_run(program, first)))) / Calibration((first,)).rows
    rows = min(_ROWS, NUMBERS / max(1.0, a_row))
    few = _few(data, rows)
    return TrialSetting(program, few, max(1, round(rows / len(few.batches))), objective, how)


class CutTrials:
    """Trials in this process."""

    def __init__(self, setting: TrialSetting) -> None:
        self.program, self.setting = setting.program, setting
        batches = setting.few.batches
        self.compared = [shortened(self.program, batch, setting.each) for batch in batches]
        self.prefixes = Prefixes(self.program, (*self.compared, *batches), live_limit(self.program))
        self.outputs = [
            _required(self.program, self.prefixes.run(self.program, batch)) for batch in self.compared
        ]

    def gap(self, trial: CutTrial) -> float | None:
        """Return how far the outputs move by the objective; None where an output shrinks itself, so that it can't be compared."""
        if trial.branch:
            return self._distance(bypass(self.program, [trial.branch]))
        chosen = Selection.from_json(trial.selection)
        slim = apply(self.program, chosen)
        if slim.free_outputs and _sizes(_run(slim, self.compared[0])) != _sizes(self.outputs[0]):
            return None
        few = self.setting.few
        bare = self.setting.how.partition("+")[0] == "none" or len(few.batches) < 2
        how = "none" if bare else "readers"
        done = repair(self.program, slim, chosen, few, how, prefixes=self.prefixes)
        return self._distance(done.program)

    def _distance(self, candidate: Program) -> float:
        """Return the distance of a candidate's outputs from the original's, averaged over batches."""
        pairs = zip(self.compared, self.outputs, strict=True)
        gaps = [
            self.setting.objective.gap(
                output,
                _required(candidate, self.prefixes.run(candidate, batch)),
                {name: to_device(value) for name, value in batch.items()},
            )
            for batch, output in pairs
        ]
        return sum(gaps) / len(gaps)


RunTrials = Callable[[Sequence[CutTrial]], Iterator[float | None]]
"""Trials -> their gaps, in the same order, each as soon as it and those before it are known."""


@contextmanager
def running_trials(setting: TrialSetting, executor: Executor | None) -> Iterator[RunTrials]:
    """Give a function that runs trials, here or on an executor.

    There, the program is passed as a `.pt2` file in a folder that the workers must be able to read. What such a file does not hold is tried
    here: programs whose weights are on disk, and those whose inputs or outputs may shrink.
    """
    program = setting.program
    kept_here = program.is_mapped() or program.free_inputs or program.free_outputs or program.spare
    if executor is None or kept_here:
        here = CutTrials(setting)
        yield lambda trials: map(here.gap, trials)
        return
    with tempfile.TemporaryDirectory(prefix="fxprune-trials-") as folder:
        save_pt2(setting.program, Path(folder) / "program.pt2", classes=True)
        torch.save(
            [{name: value.clone() for name, value in batch.items()} for batch in setting.few.batches],
            Path(folder) / "rows.pt",
        )
        shared = SharedSetting(
            folder,
            analyze(setting.program).digest,
            setting.each,
            setting.objective,
            setting.how,
            tuple(container_modules(setting.program)),
            str(compute_device() or ""),
        )
        yield lambda trials: executor.map(run_trial, [shared] * len(trials), trials)


@dataclass(frozen=True)
class SharedSetting:
    """Setting as a worker gets it: the folder with the program and the rows, the digest of its axes, and the rest."""

    folder: str
    digest: str
    each: int
    objective: Objective
    how: str
    modules: tuple[str, ...]
    device: str


def run_trial(shared: SharedSetting, trial: CutTrial) -> float | None:
    """Return the gap of one trial; runs in a worker, which reads the program once."""
    with _turn, computing_on(torch.device(shared.device) if shared.device else None):
        if shared.folder not in _read:
            _read.clear()
            _read[shared.folder] = _trials_of(shared)
        return _read[shared.folder].gap(trial)


_read: dict[str, CutTrials] = {}
"""Trials of the program that this worker has read last, by its folder."""

_turn = Lock()
"""Trials of one process take turns, for they share what was read: an executor of threads gains nothing."""


def _trials_of(shared: SharedSetting) -> CutTrials:
    for module in shared.modules:
        importlib.import_module(module)
    program = capture(Path(shared.folder) / "program.pt2")
    if analyze(program).digest != shared.digest:
        raise FxpruneError(
            "the program that was written for other processes is read there with other axes: give no executor"
        )
    rows: list[Batch] = torch.load(Path(shared.folder) / "rows.pt", weights_only=True)
    few = Calibration(tuple(rows))
    return CutTrials(TrialSetting(program, few, shared.each, shared.objective, shared.how))


def check_picklable(objective: Objective, executor: Executor | None) -> None:
    """Raise UsageError where processes can't take over an objective: its loss can't be pickled."""
    if not isinstance(executor, ProcessPoolExecutor):
        return
    try:
        ForkingPickler.dumps(objective)
    except Exception as error:
        raise UsageError(
            f"an executor runs the loss in other processes, and it can't be pickled: {describe_error(error)};"
            " give a function of a module, or no executor"
        ) from error


def _few(data: Calibration, rows: float) -> Calibration:
    """Return batches spread over the data, of about so many rows in all, but more than one where there are more."""
    count = max(2, round(rows * len(data.batches) / max(1, data.rows)))
    step = max(1, len(data.batches) // count)
    return Calibration(data.batches[::step][:count])


def _sizes(outputs: Any) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in pytree.tree_leaves(outputs) if isinstance(value, Tensor)]


def _run(program: Program, batch: Batch) -> Any:
    return _required(program, run_batch(program, batch))


def _required(program: Program, results: Any) -> Any:
    return tuple(required_outputs(program, pytree.tree_leaves(results))) if program.spare else results
