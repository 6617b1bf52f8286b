"""Training loop: batches, optimizer, learning rate, clipping and checkpoints, on Accelerate (the extra `train`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxprune.errors import UsageError
from fxprune.training.checkpoint_files import (
    Snapshot,
    about_snapshot,
    newest_snapshot,
    read_snapshot,
    write_snapshot,
)
from fxprune.training.checkpoint_state import TrainingState
from fxprune.training.examples import Batches, Examples, TrainingBatch, loader
from fxprune.training.sharded import check_sharding

_NEEDS = "training runs on Accelerate ({}); install: pip install 'fxprune[train]'"


PRECISIONS = ("no", "bf16")

_HOURS = 24  # that processes wait for one another: the first may search for a plan meanwhile

# On CPUs in bfloat16, unfused (MATH) attention is 1.6 to 2.8 times as fast as torch's fused kernel up to this length, slower from 384 on.
SHORT = 128


@dataclass(frozen=True)
class Recipe:
    """Settings of training: AdamW, linear decay of the learning rate to 0; defaults of Greedy-layer Pruning (arXiv 2105.14839)."""

    epochs: int = 3
    learning_rate: float = 2e-5
    batch_size: int = 32
    warmup: float = 0.0  #: share of the steps in which the learning rate rises
    weight_decay: float = 0.0
    seed: int = 0  #: seed of the order of rows, and of dropout
    precision: str = "no"  #: mixed precision: no or bf16
    clip: float = 0.0  #: the largest norm of the gradients of a step; 0: no clipping
    #: the device to train on (cuda); "": the one of the weights. The result is moved back, and differs by rounding only
    device: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be {' or '.join(PRECISIONS)}, got {self.precision!r}")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate at a step, as a share of the highest."""
        rising = self.warmup * steps
        return step / rising if step < rising else max(0.0, (steps - step) / max(1.0, steps - rising))


@dataclass
class RunState:
    """State of a run: `step` of `steps` are done. `history` is the log of the run, plain data that checkpoints contain."""

    steps: int
    step: int = 0
    loss: float = math.nan
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def progress(self) -> float:
        """Progress of the current step, from 0 (the first) to 1 (the last)."""
        return self.step / max(1, self.steps - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"step": self.step, "loss": self.loss, "history": list(self.history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint; UsageError where it is none of a run of so many steps."""
        step, loss, history = (state.get(name) for name in ("step", "loss", "history"))
        told = isinstance(history, list) and all(isinstance(entry, dict) for entry in history)
        if not (isinstance(step, int) and 0 <= step <= self.steps and isinstance(loss, float) and told):
            raise UsageError(f"step, loss or history are none of a run of {self.steps} steps")
        self.step, self.loss, self.history = step, loss, list(history or ())


LossFunction: TypeAlias = Callable[[Any, TrainingBatch], Tensor]
"""(the wrapped module, a batch) -> the loss to minimise."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks: before each step of the optimizer, after each step, and after each epoch."""

    before: Callable[[RunState], None] = lambda moment: None
    after: Callable[[RunState], None] = lambda moment: None
    epoch: Callable[[RunState], None] = lambda moment: None


@dataclass(frozen=True)
class Checkpoints:
    """The folder for checkpoints of a run, and the seconds between two of them; a run with a checkpoint there resumes from it."""

    folder: Path
    seconds: float = 120.0


class Loop:
    """One run of training, whole or resumed from a checkpoint; it trains in place, on the device of the weights."""

    def __init__(
        self,
        module: nn.Module,
        examples: Examples,
        recipe: Recipe,
        hooks: Hooks | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.recipe, self.hooks, self.checkpoints = recipe, hooks or Hooks(), checkpoints
        self.batches = Batches(examples, recipe.batch_size, recipe.seed)
        parameters = [each.requires_grad_() for each in module.parameters()]
        self.accelerator = accelerator_for(parameters[0].device)
        check_sharding(self.accelerator, checkpoints is not None)
        groups = _groups(parameters, recipe.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
        ready = self.accelerator.prepare(module, optimizer, loader(examples, self.batches))
        self.module, self.optimizer, self.loader = ready
        self.moment = RunState(recipe.epochs * len(self.loader))
        steps = self.moment.steps  # not through `self`: a cycle would keep the optimizer on its device
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate(step, steps))
        self.state = TrainingState(module, optimizer, self.schedule, self.accelerator.device)

    def run(self, lesson: LossFunction) -> RunState:
        """Train to the end; the same seed gives the same weights. torch's random state is restored afterwards."""
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.recipe.seed)
            self._restore()
            self.module.train()
            self._saved = time.monotonic()
            for batch, ends in self._rest():
                self._step(lesson, batch)
                if ends:
                    self.hooks.epoch(self.moment)
                    self.module.train()
                self._save()
        return self.moment

    def _rest(self) -> Iterator[tuple[TrainingBatch, bool]]:
        """Yield (batch, whether it ends an epoch) for the rest of the run."""
        each = len(self.loader)
        for epoch in range(self.moment.step // each, self.recipe.epochs):
            self.batches.epoch = epoch
            done = self.moment.step - epoch * each
            left = self.accelerator.skip_first_batches(self.loader, done) if done else self.loader
            for place, batch in enumerate(left, done + 1):
                yield batch, place == each

    def _step(self, lesson: LossFunction, batch: TrainingBatch) -> None:
        narrow = self.recipe.precision != "no"
        with autocast(self.accelerator.device.type, batch[0].values()) if narrow else nullcontext():
            loss = lesson(self.module, batch)
        self.accelerator.backward(loss)
        self.moment.loss = float(loss.detach())
        self.hooks.before(self.moment)
        if self.recipe.clip:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.moment.step += 1
        self.hooks.after(self.moment)

    def _restore(self) -> None:
        found = newest_snapshot(self.checkpoints.folder) if self.checkpoints else None
        if not found:
            return
        with about_snapshot(found):
            self._resume(read_snapshot(found))

    def _resume(self, kept: Snapshot) -> None:
        for name, own in self._setup().items():
            if kept.numbers.get(name) != own:
                raise UsageError(f"{name}: {kept.numbers.get(name)!r} there, and {own!r} in this run")
        self.moment.load_state_dict(kept.numbers)
        rank = self.accelerator.process_index
        self.state.restore(kept.tensors, kept.numbers.get("schedule"), f"random.{rank}")

    def _setup(self) -> dict[str, Any]:
        """Return the numbers that a run must have in common with the one that it resumes."""
        rows = {
            "rows": len(self.batches.lengths),
            "batch_size": self.batches.batch_size,
            "seed": self.batches.seed,
        }
        return {"steps": self.moment.steps, "processes": self.accelerator.num_processes, "sampler": rows}

    def _save(self) -> None:
        """Save a checkpoint where one is due, and at the end; the last one is deleted only when the new one is complete."""
        kept = self.checkpoints
        if kept is None or not self._is_time(kept):
            return
        random = self._random()
        if self.accelerator.is_main_process:
            numbers = {**self._setup(), **self.moment.state_dict(), "schedule": self.state.rates()}
            write_snapshot(kept.folder, Snapshot({**self.state.tensors(), **random}, numbers))
        self.accelerator.wait_for_everyone()
        self._saved = time.monotonic()

    def _random(self) -> dict[str, Tensor]:
        """Return the states of the random numbers of all processes, by process."""
        found: dict[str, Tensor] = {}
        for number, state in enumerate(self.state.random()):
            gathered = self.accelerator.gather(state[None].to(self.accelerator.device)).cpu()
            found |= {f"random.{rank}.{number}": row for rank, row in enumerate(gathered)}
        return found

    def _is_time(self, kept: Checkpoints) -> bool:
        """Return whether a checkpoint is due, by the clock of the first process."""
        due = self.moment.step == self.moment.steps or time.monotonic() > self._saved + kept.seconds
        if self.accelerator.num_processes > 1:
            said = torch.tensor(float(due), device=self.accelerator.device)
            torch.distributed.broadcast(said, 0)
            due = bool(said)
        return due


@contextmanager
def autocast(device: str, inputs: Iterable[Tensor]) -> Iterator[None]:
    """Enable mixed precision (bfloat16) within the block, for a batch of these inputs, (rows, length, …)."""
    short = all(value.shape[1] <= SHORT for value in inputs if value.ndim > 1)
    plain = sdpa_kernel(SDPBackend.MATH) if device == "cpu" and short else nullcontext()
    with torch.autocast(device, torch.bfloat16), plain:
        yield


def check_accelerate() -> None:
    """Raise UsageError where Accelerate, on which all training runs, can't be imported."""
    try:
        import accelerate  # noqa: F401 - whether it is there
    except ImportError as error:
        raise UsageError(_NEEDS.format(error)) from error


def accelerator_for(device: torch.device) -> Any:
    """Return an Accelerator for the device of the weights, which the graph's nodes refer to as well; UsageError where it can't be imported.

    The loop handles mixed precision itself: Accelerate's replaces the module's forward, and a graph that recompiles never reaches it.
    """
    check_accelerate()
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState, PartialState

    known = PartialState().device if PartialState._shared_state else device
    if known.type != device.type and PartialState().num_processes == 1:
        # It remembers the device of the first run of a process.
        AcceleratorState._reset_state(reset_partial_state=True)
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=_HOURS))
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[patient])


def undecayed(parameters: Iterable[Tensor]) -> None:
    """Exclude these parameters from weight decay, as another penalty already applies to them."""
    for parameter in parameters:
        parameter.undecayed = True  # type: ignore[attr-defined]


def _groups(parameters: Sequence[Tensor], decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: matrices decay; biases, the weights of norms, and `undecayed` parameters do not."""
    decays = [p.ndim > 1 and not getattr(p, "undecayed", False) for p in parameters]
    return [
        {"params": [p for p, yes in zip(parameters, decays, strict=True) if yes], "weight_decay": decay},
        {"params": [p for p, yes in zip(parameters, decays, strict=True) if not yes], "weight_decay": 0.0},
    ]
