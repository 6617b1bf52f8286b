"""Stages of a pipeline that trains: passes that prune, and passes that train, each lowered before the next."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from fxprune.analysis import analyze
from fxprune.cost import Clock, default_cache
from fxprune.errors import UsageError, VerifyError
from fxprune.gates import Lowered
from fxprune.gates.lower import lower
from fxprune.ir import TOLERANCES, Program, difference, point_with, run_example
from fxprune.passes import pipeline
from fxprune.pipeline import Pipeline, Training
from fxprune.runtimes import Settings
from fxprune.search.alternatives import cheapest_lowerings
from fxprune.tools.commands.bench import settings
from fxprune.tools.commands.console import Stages, Steps
from fxprune.tools.commands.options import recipe_of
from fxprune.tools.inputs.tasks import PreparedTask
from fxprune.tools.reports.train_report import POINT, open_units
from fxprune.training import Recipe, Trained
from fxprune.training.loop import Checkpoints, Hooks, RunState
from fxprune.training.teacher_cache import TeacherCache
from fxprune.training.train import train

_Part: TypeAlias = "Pipeline | Any"
"""Passes that prune, or one that trains."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A part that was carried out: the claim that was proved of it, its largest relative difference, and the program that it left.

    Where it trained, also the trained module, the lowered program, and how units of unequal sizes were lowered.
    """

    claim: str
    relative: float
    program: Program
    taught: Trained | None = None
    lowered: Lowered | None = None
    how: Mapping[str, str] | str = ""


def split_stages(text: str) -> list[_Part]:
    """Split a pipeline's text into parts: each pass that trains, and each run of other passes. UsageError where none trains."""
    parts: list[_Part] = []
    for each in pipeline(text).passes:
        if isinstance(each, Training):
            parts.append(each)
        elif parts and isinstance(parts[-1], Pipeline):
            parts[-1] = Pipeline((*parts[-1].passes, each))
        else:
            parts.append(Pipeline((each,)))
    if not any(isinstance(part, Training) for part in parts):
        raise UsageError(
            f"-p {text!r} has no pass that trains; it needs one, as in grain(density=0.1): `fxprune run` runs the others alone"
        )
    return parts


@dataclass(frozen=True, eq=False)
class Trainer:
    """State that all parts share: the options, the rows, the teacher, and the folder of checkpoints."""

    options: argparse.Namespace
    lesson: PreparedTask
    teacher: nn.Module | None
    kept: Path
    stages: Stages

    def run(self, program: Program, parts: Sequence[_Part]) -> list[Stage]:
        """Run every part in order, each on the program that the one before left; VerifyError where a claim fails."""
        done: list[Stage] = []
        recall = TeacherCache(self.options.recall * 2**20)
        for part in parts:
            trained = sum(stage.taught is not None for stage in done)
            if isinstance(part, Pipeline):
                done.append(self._pruned(program, part, trained))
            else:
                done.append(self._trained(program, part, recall, trained))
            program = done[-1].program
        return done

    def _pruned(self, program: Program, part: Pipeline, trained: int) -> Stage:
        with self.stages.stage(str(part)):
            result = part.run(program)
            proof = result.prove(program)
        return Stage("after" if trained else "before training", proof.relative, result.program)

    def _trained(self, program: Program, method: Any, recall: TeacherCache, trained: int) -> Stage:
        folder = self.kept / (f"student-{trained + 1}" if trained else "student")
        recipe = _recipe(self.options, method)
        with Steps(f"{method}") as steps:
            taught = train(
                program, method, self.lesson.train, recipe, self.teacher, outputs=self.lesson.outputs,
                hooks=Hooks(after=partial(show_progress, steps)), checkpoints=Checkpoints(folder, self.options.save), recall=recall,
                judge=self.lesson.judge,
            )  # fmt: skip
        how = self._how(taught, settings(self.options))
        with self.stages.stage("lowering"):
            lowered = lower(taught.gated, taught.module, how)
        with self.stages.stage("finishing"):
            clock = Clock(settings(self.options), default_cache())
            program = method.finish(lowered.program, clock, point_with(lowered.program, **POINT))
            relative = _check_lowered(taught, program)
        return Stage("lowered", relative, program, taught, lowered, how)

    def _how(self, taught: Trained, session: Settings) -> dict[str, str] | str:
        """Return how units of unequal sizes are lowered: as asked, or as measured."""
        if self.options.lowering != "measured":
            return str(self.options.lowering)
        with self.stages.stage("measuring how uneven heads run fastest"):
            point = point_with(taught.gated.base, **POINT)
            return cheapest_lowerings(taught.gated, taught.module, Clock(session, default_cache()), point)


def _recipe(options: argparse.Namespace, method: Any) -> Recipe:
    recipe = recipe_of(options, seed=options.seed)
    return replace(recipe, epochs=getattr(method, "epochs", 0) or recipe.epochs)


def show_progress(steps: Steps, moment: RunState) -> None:
    """Show the state of a run in its progress bar."""
    figures: dict[str, float] = {}
    for entry in moment.history:
        figures |= {name: value for name, value in entry.items() if name not in ("step", "loss")}
    figures = {"loss": moment.loss, **figures}
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    steps.reached(moment.step, moment.steps, f"{told}, ")


def _check_lowered(taught: Trained, lowered: Program) -> float:
    """Return the largest relative difference of the lowered program from the gated module; VerifyError above the tolerance."""
    expected = run_example(taught.gated.program.replace(graph_module=taught.module))
    relative = difference(run_example(lowered, taught.gated.program), expected)
    bar = max(TOLERANCES.get(value.dtype, 0.0) for value in expected)
    if not relative <= bar:
        raise VerifyError(
            f"what was lowered differs from the gated model by {relative:.1e}; the bar is {bar:.0e}"
        )
    return relative


def describe_stages(done: Sequence[Stage]) -> dict[str, Any]:
    """Return the entries of train.json about the parts: joined histories, what is left of gates and heads, the lowering, the proofs."""
    trained = [stage for stage in done if stage.taught is not None]
    gated = [stage for stage in trained if stage.taught and stage.taught.gated.gates]
    last = (gated or trained)[-1]
    assert last.taught is not None
    assert last.lowered is not None
    return {
        "density": last.taught.pruner.density,
        "history": _history(trained),
        "steps": sum(stage.taught.moment.steps for stage in trained if stage.taught),
        "left": open_units(last.taught.pruner, last.lowered.units),
        "heads": _heads(last.taught.gated.base, last.lowered),
        "lowering": last.how,
        "padded": dict(last.lowered.padded),
        "proved": _proofs(done),
    }


def _history(trained: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return the histories of all parts as one run; a part without gates has the density of the one before it."""
    found: list[dict[str, Any]] = []
    for stage in trained:
        assert stage.taught is not None
        past = found[-1]["step"] if found else 0
        same = {"density": found[-1]["density"]} if found and not stage.taught.gated.gates else {}
        found += [{**entry, "step": entry["step"] + past, **same} for entry in stage.taught.moment.history]
    return found


def _heads(base: Program, lowered: Lowered) -> dict[str, list[int]]:
    """Return the heads that are left, by axis."""
    open_ = {unit.axis: unit.table for unit in lowered.units if not unit.within}
    axes = [axis for axis in analyze(base).axes if axis.role == "heads"]
    return {
        axis.name: open_[axis.name].nonzero().flatten().tolist()
        if axis.name in open_
        else list(range(axis.size))
        for axis in axes
    }


def _proofs(done: Sequence[Stage]) -> dict[str, float]:
    """Return the largest difference by claim; a claim that is made again is numbered."""
    found: dict[str, float] = {}
    for stage in done:
        number = 1 + sum(name.partition(" (")[0] == stage.claim for name in found)
        found[f"{stage.claim} ({number})" if number > 1 else stage.claim] = stage.relative
    return found
