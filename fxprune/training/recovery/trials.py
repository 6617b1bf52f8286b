"""Trials before a recovery: whether new batch statistics help, which precision is faster, and which learning rate learns most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from fxprune.calibration.data import Batch
from fxprune.training.recovery import batch_norm
from fxprune.training.recovery.lesson import flat_inputs
from fxprune.training.recovery.options import RunBudget
from fxprune.training.recovery.trainer import Manner, Trainer
from fxprune.training.recovery.weights import copied, put

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates that are tried, in this order until two in a row have been worse than the best."""

TRIAL_SHARE = 0.03
"""Share of the run that one trial takes."""

MIXED_PAYS = 0.85
"""Mixed precision must take no more than this share of the time."""

FEWEST = 4
"""Steps of the shortest trial."""

Say = Callable[[str], None]


def estimate_statistics(
    trainer: Trainer, batches: Iterator[Batch], say: Say, most: int = 16
) -> dict[str, Any]:
    """Estimate the statistics of batch norms anew where that lowers the held-back loss; return plain data on it."""
    names = batch_norm.statistics(trainer.lesson.graph)
    if not names:
        return {}
    say("estimating the statistics of batch norms")
    before, start = trainer.judged(Manner(0)), batch_norm.running_statistics(trainer.lesson.graph)
    flats = (flat_inputs(trainer.program, batch, trainer.device) for batch in islice(batches, most))
    batch_norm.estimate(trainer.lesson.graph, flats)
    after = trainer.judged(Manner(0))
    if not after < before:
        put(trainer.lesson.graph, start)
    return {"before": before, "after": after, "kept": after < before}


def freeze_unused(trainer: Trainer, batch: Batch) -> None:
    """Leave out of training what no loss depends on."""
    for parameter in trainer.lesson.graph.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    flat = flat_inputs(trainer.program, batch, trainer.device)
    outputs, inside = trainer.lesson(flat, trainer.original.show(flat))
    (outputs + trainer.options.hidden * inside).backward()
    for parameter in trainer.lesson.graph.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def choose_precision(trainer: Trainer, batch: Batch) -> tuple[str, float]:
    """Return (the precision, seconds of a step): as asked, or mixed where it is faster."""
    asked = trainer.options.precision
    seconds = {name: _seconds(trainer, name, batch) for name in ("no", "bf16") if asked in (name, "auto")}
    mixed = seconds.get("bf16", 0.0) <= MIXED_PAYS * seconds.get("no", float("inf"))
    chosen = "bf16" if "bf16" in seconds and mixed else "no"
    chosen = "bf16" if trainer.agreed(float(chosen == "bf16")) else "no"
    return chosen, trainer.agreed(seconds.get(chosen, next(iter(seconds.values()))))


def _seconds(trainer: Trainer, precision: str, batch: Batch) -> float:
    """Return the seconds of a training step, the faster of two after one to warm up."""
    found = []
    flat = flat_inputs(trainer.program, batch, trainer.device)
    for _ in range(3):
        start = time.perf_counter()
        with trainer.narrow(precision, batch):
            outputs, inside = trainer.lesson(flat, trainer.original.show(flat))
        (outputs + inside).backward()
        found.append(time.perf_counter() - start)
    for parameter in trainer.parameters():
        parameter.grad = None
    return min(found[1:])


def choose_manner(
    trainer: Trainer, precision: str, steps: int, batches: Callable[[], Iterator[Batch]], say: Say
) -> tuple[Manner, list[dict[str, Any]]]:
    """Return the manner with the lowest held-back loss after so many steps from the same weights, and a row for each that was tried."""
    start, tried = copied(trainer.lesson.graph), list[dict[str, Any]]()

    def attempt(manner: Manner) -> float:
        say(f"trying a learning rate of {manner.rate:g}")
        found = _attempt(trainer, manner, steps, batches())
        put(trainer.lesson.graph, start)
        tried.append({"rate": manner.rate, "batch_statistics": manner.batch_statistics, "loss": found})
        return found

    if trainer.options.rate:
        best, least = Manner(trainer.options.rate, precision), float("inf")
    else:
        best, least = _best_rate(attempt, precision)
    if batch_norm.statistics(trainer.lesson.graph):
        least = attempt(best) if trainer.options.rate else least
        other = replace(best, batch_statistics=True)
        best = other if attempt(other) < least else best
    return best, tried


def _best_rate(attempt: Callable[[Manner], float], precision: str) -> tuple[Manner, float]:
    best, least, worse = Manner(RATES[0], precision), float("inf"), 0
    for rate in RATES:
        manner = Manner(rate, precision)
        loss = attempt(manner)
        worse = 0 if loss < least else worse + 1
        best, least = (manner, loss) if loss < least else (best, least)
        if worse == 2:
            break
    return best, least


def _attempt(trainer: Trainer, manner: Manner, steps: int, batches: Iterator[Batch]) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trainer.options.seed)
        run, ready = trainer.begin(manner)
        trainer.train(run, ready, manner, RunBudget(0, steps), batches)
        found = trainer.judged(manner)
    batch_norm.set_training(trainer.lesson.graph, False)
    return found
