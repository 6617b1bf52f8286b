"""Progress of a recovery: the best moment, the history of judgements, and checkpoints from which a killed run goes on."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.ir.tensors import update_digest
from fxprune.training.checkpoint_files import (
    Snapshot,
    about_snapshot,
    newest_snapshot,
    read_snapshot,
    write_snapshot,
)
from fxprune.training.checkpoint_state import TrainingState
from fxprune.training.loop import Checkpoints
from fxprune.training.recovery.options import Lessons
from fxprune.training.recovery.trainer import Manner, Run, Trainer
from fxprune.training.recovery.weights import Average, Best, NamedWeights


@dataclass(frozen=True, eq=False)
class State:
    """State of a run: the held-back loss before it, the best moment, how it trains, what the trials found, its judgements."""

    before: float
    best: Best
    manner: Manner
    notes: Mapping[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    since: float = 0.0


_FORM = 3
"""Version of what a checkpoint holds: 2 since judgements are of some held-back rows, 3 since learning part by part may end early."""

FRUITLESS = 2
"""Judgements in a row that better nothing, after which parts no longer learn by themselves."""


class RecoveryLog:
    """Record of a recovery in memory, and in the folder of `checkpoints` where there is one; `digest` tells whose it is."""

    def __init__(self, checkpoints: Checkpoints | None, digest: str) -> None:
        self.checkpoints, self.digest = checkpoints, digest
        self._found, self.anew = _own_snapshot(checkpoints, digest)
        self._saved = time.monotonic()
        self.elapsed = float(self._found.numbers["elapsed"]) if self._found else 0.0
        self.state: State

    def read(self) -> State | None:
        """Return the state of the run that is resumed, None where there is none."""
        if self._found is None:
            return None
        numbers = self._found.numbers
        best = Best(float(numbers["best"]), _below("best", self._found.tensors))
        self.state = State(
            float(numbers["before"]), best, Manner(**numbers["manner"]), numbers["notes"], list(numbers["history"]),
            float(numbers["since"]),
        )  # fmt: skip
        return self.state

    def begin(self, state: State) -> State:
        """Record a run that begins."""
        self.state = replace(state, history=[_entry(0, state.since, 0.0, state.best.loss)])
        return self.state

    def resume(self, trainer: Trainer, run: Run, average: Average) -> None:
        """Restore weights, optimizer and mean of the run that is resumed, if one is."""
        found = self._found
        if found is None or self.checkpoints is None:
            return
        with about_snapshot(self.checkpoints.folder):
            _state_of(trainer, run).restore(found.tensors, found.numbers["schedule"], "random")
        run.step, run.progress = int(found.numbers["step"]), float(found.numbers["progress"])
        average.weights, average.count = _below("average", found.tensors), run.step

    def judged(self, run: Run, seconds: float, loss: float, weights: NamedWeights) -> None:
        """Record a judgement, and keep the weights where they are the best."""
        self.state.history.append(_entry(run.step, seconds, run.progress, loss))
        if loss < self.state.best.loss:
            kept = {name: value.clone() for name, value in weights.items()}
            self.state = replace(self.state, best=Best(loss, kept))

    def is_whole(self) -> bool:
        """Return whether parts no longer learn by themselves: FRUITLESS judgements in a row bettered nothing."""
        best, row = math.inf, 0
        for entry in self.state.history:
            row = 0 if entry["loss"] < best else row + 1
            best = min(best, entry["loss"])
            if row >= FRUITLESS:
                return True
        return False

    def text(self) -> str:
        """Return the held-back loss and the share of the gap that is closed, in words."""
        before, now = self.state.before, self.state.best.loss
        return f"held-back loss {before:.3g} → {now:.3g}, {closed(before, now):.0%} closed"

    def save(self, trainer: Trainer, run: Run, average: Average, elapsed: float) -> None:
        """Write a checkpoint where one is due, and at the end."""
        kept = self.checkpoints
        if kept is None:
            return
        due = run.progress >= 1 or time.monotonic() > self._saved + kept.seconds
        if not trainer.agreed(float(due)):
            return
        self._saved = time.monotonic()
        if trainer.accelerator.is_main_process:
            write_snapshot(kept.folder, self._snapshot(trainer, run, average, elapsed))
        trainer.accelerator.wait_for_everyone()  # no process may look for it before it is complete

    def _snapshot(self, trainer: Trainer, run: Run, average: Average, elapsed: float) -> Snapshot:
        state = _state_of(trainer, run)
        groups = {"average": average.weights, "best": self.state.best.weights}
        tensors = {f"{kind}.{name}": value for kind, found in groups.items() for name, value in found.items()}
        random = {f"random.{place}": value for place, value in enumerate(state.random())}
        numbers = {"step": run.step, "progress": run.progress, "elapsed": elapsed, "schedule": state.rates()}
        return Snapshot({**state.tensors(), **tensors, **random}, {**numbers, **self._numbers()})

    def _numbers(self) -> dict[str, Any]:
        state = self.state
        return {
            "digest": self.digest,
            "before": state.before,
            "best": state.best.loss,
            "since": state.since,
            "manner": asdict(state.manner),
            "notes": dict(state.notes),
            "history": state.history,
        }

    def details(self) -> dict[str, Any]:
        """Return plain data for a report."""
        state = self.state
        resumed = int(self._found.numbers["step"]) if self._found else 0
        begun = {"resumed": resumed, "anew": self.anew}
        return {**asdict(state.manner), **state.notes, "history": list(state.history), **begun}


def closed(before: float, now: float) -> float:
    """Return the share of the gap to the original that is closed."""
    return 1 - now / before if before > 0 and math.isfinite(now) else 0.0


def run_digest(programs: tuple[Program, ...], options: Lessons) -> str:
    """Return a digest of the weights that a run begins with, and of its options without the budget."""
    found = hashlib.blake2b(f"{_FORM} {replace(options, minutes=0.0, steps=0)}".encode(), digest_size=16)
    for program in programs:
        update_digest(found, program.tensors())
    return found.hexdigest()


def _own_snapshot(checkpoints: Checkpoints | None, digest: str) -> tuple[Snapshot | None, str]:
    """Return the newest checkpoint, or None, and why a run begins anew though there is one; the new run then replaces it."""
    path = newest_snapshot(checkpoints.folder) if checkpoints else None
    if path is None:
        return None, ""
    try:
        found = read_snapshot(path)
    except UsageError as error:
        return None, f"the checkpoint {path} can't be read: {error}"
    if found.numbers.get("digest") != digest:
        return None, f"the checkpoint {path} is of another cut, or of other options"
    return found, ""


def _state_of(trainer: Trainer, run: Run) -> TrainingState:
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
    return TrainingState(trainer.lesson.graph, optimizer, run.schedule, trainer.device)


def _below(kind: str, tensors: Mapping[str, Tensor]) -> NamedWeights:
    start = f"{kind}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _entry(step: int, seconds: float, progress: float, loss: float) -> dict[str, float]:
    return {"step": step, "seconds": seconds, "progress": progress, "loss": loss}
