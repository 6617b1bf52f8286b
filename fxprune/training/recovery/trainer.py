"""Trainer: steps of AdamW on a lesson, by a budget of time or steps, alone or in several processes of Accelerate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.calibration.data import Batch
from fxprune.ir import Program
from fxprune.training.loop import autocast
from fxprune.training.recovery import batch_norm
from fxprune.training.recovery.feed import Feed
from fxprune.training.recovery.images import augmented
from fxprune.training.recovery.judge import HeldBackLoss
from fxprune.training.recovery.lesson import Lesson, Original, flat_inputs
from fxprune.training.recovery.options import Lessons, RunBudget, share_of_rate


@dataclass(frozen=True)
class Manner:
    """How a program is trained: the highest learning rate, precision, layout of images, whether batch norms take batch statistics."""

    rate: float
    precision: str = "no"
    channels_last: bool = False
    batch_statistics: bool = False


@dataclass(eq=False)
class Run:
    """One run of training: its optimizer, the steps that are done, and the loss of the last."""

    optimizer: torch.optim.Optimizer
    step: int = 0
    loss: float = 0.0
    since: float = 0.0  #: seconds of the budget before it began
    progress: float = 0.0
    whole: bool = False  #: parts no longer learn by themselves
    schedule: Any = field(default=None, repr=False)


def laid_out(flat: Sequence[Any], channels_last: bool) -> list[Any]:
    """Return flat inputs, images (of four dims) with their channels last in memory if so wanted: what follows takes the layout over."""
    how = torch.channels_last if channels_last else torch.contiguous_format
    return [value.contiguous(memory_format=how) if is_image(value) else value for value in flat]


def is_image(value: Any) -> bool:
    """Return whether a value is a floating-point tensor of four dims."""
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()


class Trainer:
    """The pruned program with its teacher, its data and its judge; it trains in place."""

    def __init__(
        self,
        programs: tuple[Program, Original, Lesson],
        feed: Feed,
        judge: HeldBackLoss,
        options: Lessons,
        accelerator: Any,
    ) -> None:
        self.program, self.original, self.lesson = programs
        self.feed, self.judge, self.options, self.accelerator = feed, judge, options, accelerator
        self.device: torch.device = accelerator.device

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained: parameters that a loss depends on."""
        return [each for each in self.lesson.graph.parameters() if each.requires_grad]

    def begin(self, manner: Manner, since: float = 0.0) -> tuple[Run, Any]:
        """Return a new run, and the lesson as Accelerate wraps it."""
        batch_norm.set_training(self.lesson.graph, manner.batch_statistics)
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=manner.rate, weight_decay=0.0, fused=self._fits_fused()
        )
        ready, prepared = self.accelerator.prepare(self.lesson, optimizer)
        run = Run(prepared, since=since)
        run.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: share_of_rate(run.progress))
        return run, ready

    def _fits_fused(self) -> bool:
        """Return whether torch has an optimizer for these parameters that passes over memory once."""
        return all(
            each.is_floating_point() and each.device.type in ("cpu", "cuda") for each in self.parameters()
        )

    def train(
        self,
        run: Run,
        ready: Any,
        manner: Manner,
        budget: RunBudget,
        batches: Iterator[Batch],
        after: Callable[[Run], None] = lambda run: None,
    ) -> None:
        """Train until the budget is used up, or the loss is no number; `after` is called after each step."""
        while run.progress < 1 and math.isfinite(run.loss):
            self._step(run, ready, manner, next(batches))
            run.progress = self.agreed(budget.progress(run.step, run.since))
            run.schedule.step()
            after(run)

    def _step(self, run: Run, ready: Any, manner: Manner, batch: Batch) -> None:
        flat = laid_out(flat_inputs(self.program, self.varied(batch), self.device), manner.channels_last)
        local = run.progress < self.options.local and not run.whole
        with self.narrow(manner.precision, batch):
            shown = self.original.show(flat)
            outputs, inside = ready(flat, shown, local)
        loss = outputs + self.options.hidden * inside
        run.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.options.clip:
            self.accelerator.clip_grad_norm_(self.parameters(), self.options.clip)
        run.optimizer.step()
        run.step += 1
        run.loss = float(loss.detach())

    def lay_out(self, manner: Manner) -> None:
        """Give the judge's inputs the layout of training."""
        batches = self.judge.batches
        self.judge.batches = [(rows, laid_out(flat, manner.channels_last)) for rows, flat in batches]

    def varied(self, batch: Batch) -> Batch:
        """Return the batch with its images augmented."""
        how = self.options.augmentation
        return {
            name: augmented(value, how) if name in self.options.images else value
            for name, value in batch.items()
        }

    def narrow(self, precision: str, batch: Batch) -> AbstractContextManager[Any]:
        """Return a context of mixed precision, or none."""
        return nullcontext() if precision == "no" else autocast(self.device.type, batch.values())

    def judged(self, manner: Manner) -> float:
        """Return the held-back loss, batch norms with their running statistics."""
        batch_norm.set_training(self.lesson.graph, False)
        found = self.judge.loss(self.lesson)
        batch_norm.set_training(self.lesson.graph, manner.batch_statistics)
        return found

    def agreed(self, value: float) -> float:
        """Return the first process's number, so that all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return value
        said = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(said, 0)
        return float(said)
