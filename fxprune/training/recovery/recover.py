"""Recovery: train what a cut left to say what the original says, on unlabelled rows, within a budget; never worse on held-back rows.

The loss compares outputs and values inside with the original's (FitNets, arXiv 1412.6550), first part by part, each from the original's
value of its input (PRACTISE, arXiv 2303.12794), as long as that lowers the held-back loss, then as a whole. The weights that are kept are
those of the best moment, judged on rows that nothing is trained on; where no moment is better than the start, the program stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch

from fxprune.calibration import Calibration
from fxprune.calibration.data import Batch, rows_along
from fxprune.calibration.processes import from_first, process_count
from fxprune.calibration.repair import HELD_BACK
from fxprune.errors import UsageError
from fxprune.ir import Program, Selection
from fxprune.ir.edit import with_tensors
from fxprune.training.devices import placed
from fxprune.training.loop import Checkpoints, accelerator_for
from fxprune.training.recovery import batch_norm
from fxprune.training.recovery.feed import Feed
from fxprune.training.recovery.judge import HeldBackLoss
from fxprune.training.recovery.lesson import (
    Lesson,
    Original,
    OwnDistance,
    flat_inputs,
    output_distances,
)
from fxprune.training.recovery.matching import matched_values
from fxprune.training.recovery.options import Lessons, RunBudget
from fxprune.training.recovery.progress import RecoveryLog, State, run_digest
from fxprune.training.recovery.trainer import Manner, Run, Trainer
from fxprune.training.recovery.trials import (
    FEWEST,
    TRIAL_SHARE,
    choose_manner,
    choose_speed,
    estimate_statistics,
    freeze_unused,
)
from fxprune.training.recovery.weights import Average, Best, NamedWeights, copied, exchanged
from fxprune.training.sharded import all_gathered, check_sharding, put

ObserveRecovery = Callable[[float, float, str], None]
"""(progress 0 to 1, seconds left or NaN, text)."""

ProgramMetric = Callable[[Program], float]
"""A program's quality by the user's own measure, higher is better."""

MEASURED = 16
"""Held-back batches that the scales of the losses are measured on."""

EQUAL = 1e-9
"""A held-back loss below this leaves nothing to recover."""


@dataclass(frozen=True, eq=False)
class Recovered:
    """The program after recovery (the one given, where nothing improved), the tensors that changed, and plain data on the run."""

    program: Program
    changed: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Material:
    """What a recovery learns from: calibration data, of which some rows are held back, those that are not in memory included.

    `distance` is the user's own in place of those that fit the outputs, `metric` decides at the end whether the program is better.
    `selection` leads from the original to the program, where one does: values that lost units are then compared at the others.
    """

    data: Calibration
    distance: OwnDistance | None = None
    metric: ProgramMetric | None = None
    selection: Selection | None = None


def recover(
    original: Program,
    pruned: Program,
    material: Material,
    options: Lessons,
    device: str = "",
    checkpoints: Checkpoints | None = None,
    observe: ObserveRecovery = lambda progress, seconds, text: None,
) -> Recovered:
    """Train a copy of `pruned` to say what `original` says; a run that was killed goes on where its checkpoint is.

    UsageError for a budget of nothing, for data that can't be split, and for programs whose outputs can't be compared.
    """
    check_comparable(original, pruned)
    digest = run_digest((original, pruned), options) if checkpoints or process_count() > 1 else ""
    _check_alike(pruned, digest)
    journal = RecoveryLog(checkpoints, digest)
    budget = RunBudget(options.minutes, options.steps, journal.elapsed)
    matches = matched_values(original, pruned, material.selection) if options.hidden else ()
    was = material.metric(pruned) if material.metric else None  # first, for it may fail
    lesson = Lesson(pruned, matches, output_distances(original, options.distance), material.distance)
    teacher = Original(original, matches)
    with placed([lesson.graph, teacher.module], device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        trainer = _trainer(pruned, teacher, lesson, material, options)
        check_sharding(trainer.accelerator, checkpoints is not None)
        before, best, details = _trained(trainer, budget, journal, observe)
    details |= {
        "before": before,
        "after": best.loss,
        "matched": [each.name for each in matches],
        "outputs": lesson.distances,
        "images": list(options.images),
        "own_distance": material.distance is not None,
    }
    return _result((pruned, was), material, best, before, details)


def check_comparable(original: Program, pruned: Program) -> None:
    """Raise UsageError where the outputs of two programs have other names, or none of floating point."""
    ours, theirs = output_distances(pruned, ""), output_distances(original, "")
    if not theirs or ours.keys() != theirs.keys():
        told = ", ".join(theirs) or "none"
        raise UsageError(
            f"recover compares floating-point outputs with the original's ({told}), and the program has {', '.join(ours) or 'none'}"
        )


def _check_alike(pruned: Program, digest: str) -> None:
    """Raise UsageError where the processes that train together have different programs or options."""
    device = next((value.device for value in pruned.tensors().values()), torch.device("cpu"))
    if from_first(digest.encode(), device) != digest.encode():
        raise UsageError(
            "recover trains one program in several processes, and this process has another one than the first: measured times may have"
            " led to other cuts; cut it in one process, and let the others load the result"
        )


def _trainer(
    pruned: Program, teacher: Original, lesson: Lesson, material: Material, options: Lessons
) -> Trainer:
    fit, held = material.data.split(HELD_BACK, pruned)
    device = next((each.device for each in lesson.graph.parameters()), None)
    if device is None:
        raise UsageError("recover trains parameters, and the program has none")
    accelerator = accelerator_for(device)
    part = accelerator.process_index, accelerator.num_processes
    feed = Feed(pruned, fit, options.batch, options.seed, part)
    # As many in each process: sharded parameters are gathered for each of them.
    mine = held.batches[part[0] :: part[1]][: len(held.batches) // part[1]] or held.batches[:1]
    order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(options.seed)).tolist()
    flats = [(_count(pruned, mine[i]), flat_inputs(pruned, mine[i], device)) for i in order]
    judge = HeldBackLoss(teacher, flats, device)
    lesson.measure(islice(judge.shown(), MEASURED), options.temperature)
    return Trainer((pruned, teacher, lesson), feed, judge, options, accelerator)


def _count(program: Program, batch: Batch) -> int:
    along = rows_along(program, batch)
    return len(batch[along[0]]) if along else 1


def _trained(
    trainer: Trainer, budget: RunBudget, journal: RecoveryLog, observe: ObserveRecovery
) -> tuple[float, Best, dict[str, Any]]:
    """Return the held-back loss at the start, the best moment, and plain data on the run."""

    def say(text: str) -> None:
        observe(trainer.agreed(budget.progress(0)), budget.left(0), text)

    batches = trainer.feed.batches
    freeze_unused(trainer, next(batches()))
    kept = journal.read()
    if kept is None:
        batch = next(batches())
        fast, seconds = choose_speed(trainer, batch)
        steps = _steps(budget, seconds)
        rows = trainer.options.judged_rows(steps, _count(trainer.program, batch))
        others = trainer.judge.limit(rows)
        before = trainer.judged(Manner(0))
        if before <= EQUAL and (others is None or others.loss(trainer.lesson) <= EQUAL):
            return before, Best(before, {}), {"why": "the program already says what the original says"}
        statistics = estimate_statistics(trainer, batches(), say)
        trainer.lay_out(fast)
        start = Best(trainer.judged(fast), copied(trainer.lesson.graph))
        trial = max(FEWEST, round(TRIAL_SHARE * steps))
        manner, best, tried = choose_manner(trainer, fast, start, trial, batches, say)
        notes = {"statistics": statistics, "tried": tried, "steps": steps, "judged_rows": rows}
        kept = journal.begin(State(before, best, manner, notes, since=trainer.agreed(budget.elapsed())))
    else:
        others = trainer.judge.limit(kept.notes["judged_rows"])
    best = _main(trainer, budget, journal, observe)
    best = replace(best, weights=all_gathered(best.weights))
    return kept.before, best, journal.details() | _confirmed(trainer, others, best)


def _confirmed(trainer: Trainer, others: HeldBackLoss | None, best: Best) -> dict[str, Any]:
    """Return the losses (before, after) on held-back rows that chose no moment; nothing where all were judged on."""
    if others is None:
        return {}
    found = []
    own = {name: value for name, value in trainer.program.tensors().items() if name in best.weights}
    for weights in (own, best.weights):
        put(trainer.lesson.graph, weights)
        batch_norm.set_training(trainer.lesson.graph, False)
        found.append(others.loss(trainer.lesson))
    return {"confirmed": found}


def _steps(budget: RunBudget, seconds: float) -> int:
    """Return an estimate of the steps of the whole run, by the seconds of one."""
    timed = (budget.seconds - budget.elapsed()) / max(seconds, 1e-9)
    return max(1, int(min(timed, budget.steps)))


def _main(trainer: Trainer, budget: RunBudget, journal: RecoveryLog, observe: ObserveRecovery) -> Best:
    """Train from the start, or from the checkpoint; return the best moment."""
    state = journal.state
    trainer.lay_out(state.manner)
    run, ready = trainer.begin(state.manner, state.since)
    average = Average(trainer.lesson.graph, trainer.options.average * state.notes["steps"])
    journal.resume(trainer, run, average)
    run.whole = journal.is_whole()
    due = _due(trainer.options.judgements, run.progress)

    def after(moment: Run) -> None:
        average.update(trainer.lesson.graph)
        if moment.progress >= due[0]:
            due[:] = _due(trainer.options.judgements, moment.progress)
            _judge(trainer, journal, moment, average, budget.elapsed())
            moment.whole = journal.is_whole()
        observe(moment.progress, budget.left(moment.step), journal.text())
        journal.save(trainer, moment, average, budget.elapsed())

    trainer.train(run, ready, state.manner, budget, trainer.feed.batches(run.step), after)
    return journal.state.best


def _due(count: int, progress: float) -> list[float]:
    """Return the progress at which the next of so many judgements is due."""
    return [min(1.0, (math.floor(progress * count + 1e-9) + 1) / count)]


def _judge(trainer: Trainer, journal: RecoveryLog, run: Run, average: Average, seconds: float) -> None:
    """Judge the mean of the weights, and keep it where it is the best."""
    with exchanged(trainer.lesson.graph, average.weights):
        loss = trainer.judged(journal.state.manner)
    journal.judged(run, seconds, loss, average.weights)


def _result(
    start: tuple[Program, float | None],
    material: Material,
    best: Best,
    before: float,
    details: dict[str, Any],
) -> Recovered:
    pruned, was = start
    first, last = details.get("confirmed", (before, best.loss))
    if not (best.loss < before and last < first):
        return Recovered(pruned, (), details | {"kept": False})
    program, changed = _with(pruned, best.weights)
    if material.metric is None or was is None:
        return Recovered(program, changed, details | {"kept": True})
    now = material.metric(program)
    details |= {"metric": [was, now], "kept": now >= was}
    return Recovered(program, changed, details) if now >= was else Recovered(pruned, (), details)


def _with(program: Program, weights: NamedWeights) -> tuple[Program, tuple[str, ...]]:
    """Return the program with these weights, and the names of those that differ."""
    own = program.tensors()
    new = {
        name: weights[name]
        for name, value in own.items()
        if name in weights and not torch.equal(weights[name].to(value), value)
    }
    return with_tensors(program, new), tuple(new)
