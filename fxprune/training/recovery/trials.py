"""Trials before a recovery: whether new batch statistics help, which precision is faster, and which learning rate learns most."""

from __future__ import annotations

import math
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
from fxprune.training.recovery.trainer import Manner, Trainer, is_image, laid_out
from fxprune.training.recovery.weights import Best, copied
from fxprune.training.sharded import put

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates that are tried, from the middle on towards the better ones."""

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


def choose_speed(trainer: Trainer, batch: Batch) -> tuple[Manner, float]:
    """Return (precision and layout of a manner, seconds of a step): what is asked, and of the rest what is fastest."""
    asked = trainer.options.precision
    precisions = [name for name in ("no", "bf16") if asked in (name, "auto")]
    images = any(map(is_image, flat_inputs(trainer.program, batch, trainer.device)))
    manners = [Manner(0, name, last) for name in precisions for last in (False, True)[: 1 + images]]
    seconds = [trainer.agreed(_seconds(trainer, each, batch)) for each in manners]
    pairs = list(zip(seconds, manners, strict=True))
    weighed = [spent if each.precision != "no" else MIXED_PAYS * spent for spent, each in pairs]
    place = weighed.index(min(weighed))
    return manners[place], seconds[place]


def _seconds(trainer: Trainer, manner: Manner, batch: Batch) -> float:
    """Return the seconds of a training step, the faster of two after one to warm up; infinite where the graph can't run so."""
    found = []
    flat = laid_out(flat_inputs(trainer.program, batch, trainer.device), manner.channels_last)
    for _ in range(3):
        start = time.perf_counter()
        try:
            with trainer.narrow(manner.precision, batch):
                outputs, inside = trainer.lesson(flat, trainer.original.show(flat))
            (outputs + inside).backward()
        except RuntimeError:
            if not manner.channels_last:
                raise
            return math.inf  # a view of the graph takes memory for contiguous
        found.append(time.perf_counter() - start)
    for parameter in trainer.parameters():
        parameter.grad = None
    return min(found[1:])


def choose_manner(
    trainer: Trainer, fast: Manner, start: Best, steps: int, batches: Callable[[], Iterator[Batch]], say: Say
) -> tuple[Manner, Best, list[dict[str, Any]]]:
    """Return the manner with the lowest held-back loss after so many steps from the start, the best weights, and a row for each trial.

    The best weights, possibly those at the start, are left in the graph.
    """
    graph, asked, tried = (
        trainer.lesson.graph,
        replace(fast, rate=trainer.options.rate),
        list[dict[str, Any]](),
    )
    if asked.rate and not batch_norm.statistics(graph):
        return asked, start, []
    best = start

    def attempt(manner: Manner) -> float:
        nonlocal best
        say(f"trying a learning rate of {manner.rate:g}")
        loss = _attempt(trainer, manner, steps, batches())
        best = Best(loss, copied(graph)) if loss < best.loss else best
        put(graph, start.weights)
        tried.append({"rate": manner.rate, "batch_statistics": manner.batch_statistics, "loss": loss})
        return loss

    chosen, least = (asked, attempt(asked)) if asked.rate else _best_rate(attempt, fast)
    if batch_norm.statistics(graph):
        other = replace(chosen, batch_statistics=True)
        chosen = other if attempt(other) < least else chosen
    put(graph, best.weights)
    return chosen, best, tried


def _best_rate(attempt: Callable[[Manner], float], fast: Manner) -> tuple[Manner, float]:
    """Return the manner of the best rate and its loss: from the middle of RATES on, as long as the next one is better."""
    middle = len(RATES) // 2
    losses = {place: attempt(replace(fast, rate=RATES[place])) for place in (middle, middle - 1)}
    way = 1 if losses[middle] < losses[middle - 1] else -1
    place = middle if way == 1 else middle - 1
    while 0 <= place + way < len(RATES):
        losses[place + way] = attempt(replace(fast, rate=RATES[place + way]))
        if not losses[place + way] < losses[place]:
            break
        place += way
    return replace(fast, rate=RATES[place]), losses[place]


def _attempt(trainer: Trainer, manner: Manner, steps: int, batches: Iterator[Batch]) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trainer.options.seed)
        run, ready = trainer.begin(manner)
        trainer.train(run, ready, manner, RunBudget(0, steps), batches)
        found = trainer.judged(manner)
    batch_norm.set_training(trainer.lesson.graph, False)
    return found
