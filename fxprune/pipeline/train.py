"""Training passes: their selection is made while a program trains, and is then lowered to a smaller dense program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from fxprune.analysis import analyze
from fxprune.errors import VerifyError
from fxprune.gates import Lowered
from fxprune.gates.implied import OpenUnits
from fxprune.gates.lower import lower
from fxprune.ir import Point, Program, Selection, difference, run_example, tolerance
from fxprune.pipeline.base import Outcome, Pass
from fxprune.pipeline.context import EMPTY, Context
from fxprune.search.alternatives import cheapest_lowerings
from fxprune.training import Pruner, Recipe, Task, Trained
from fxprune.training.loop import Checkpoints, Hooks, RunState
from fxprune.training.train import Method, train
from fxprune.verification import Proof


@dataclass(frozen=True)
class Training(Pass):
    """Pass whose selection is made during training; a subclass is a `Method` of `fxprune.training.train`."""

    uses: ClassVar[tuple[str, ...]] = (
        "task",
        "recipe",
        "teacher",
        "device",
        "seed",
        "checkpoints",
        "lowering",
    )

    def needs(self) -> Mapping[str, str]:
        return {"task": ""}

    def run(self, program: Program, context: Context = EMPTY) -> Outcome:
        """Train, lower what is left, and prove that it equals what was trained; the details are plain data on the run."""
        self.check(context)
        assert context.task is not None
        trained = self.train(program, context, context.task)
        how = _lowering(trained, context)
        context.say("lowering")
        lowered = lower(trained.gated, trained.module, how)
        slim = self.finish(lowered.program, context.clock(), context.point_of(lowered.program))
        proof = _check_lowered(trained, slim)
        return Outcome(slim, Selection(), (), {"training": _details(trained, lowered, how)}, {}, proof)

    def train(self, program: Program, context: Context, task: Task) -> Trained:
        """Train a copy of the program by the context's recipe; a run that was killed goes on where its checkpoints are."""
        method = replace(self, seed=context.seed or 0) if getattr(self, "seed", 0) is None else self  # type: ignore[call-arg]
        hooks = Hooks(after=lambda moment: context.count(moment.step, moment.steps, text=_figures(moment)))
        return train(
            program,
            cast(Method, method),
            task.examples,
            self._recipe(context),
            context.teacher,
            outputs=task.outputs,
            hooks=hooks,
            checkpoints=_checkpoints(context),
            recall=context.teacher_outputs,
            judge=task.judge,
        )

    def _recipe(self, context: Context) -> Recipe:
        base = context.recipe
        return replace(
            base,
            epochs=getattr(self, "epochs", 0) or base.epochs,
            device=context.device or base.device,
            seed=base.seed if context.seed is None else context.seed,
        )

    def finish(self, program: Program, clock: Any, point: Point) -> Program:
        """Return the lowered program after steps that depend on a clock's measurements at a point; it computes the same."""
        return program


def _checkpoints(context: Context) -> Checkpoints | None:
    """Return the folder of this pass among those of the pipeline."""
    given = context.checkpoints
    return given and replace(given, folder=Path(given.folder) / f"student-{context.step + 1}")


def _figures(moment: RunState) -> str:
    """Return the loss, and the last of each figure of a run's log, as text."""
    figures: dict[str, float] = {}
    for entry in moment.history:
        figures |= {name: value for name, value in entry.items() if name not in ("step", "loss")}
    return ", ".join(f"{name} {value:.3f}" for name, value in {"loss": moment.loss, **figures}.items())


def _lowering(trained: Trained, context: Context) -> dict[str, str] | str:
    """Return how units of unequal sizes are lowered: as asked, or as measured."""
    if context.lowering != "measured":
        return context.lowering
    context.say("measuring how uneven heads run fastest")
    point = context.point_of(trained.gated.base)
    return cheapest_lowerings(trained.gated, trained.module, context.clock(), point)


def _check_lowered(trained: Trained, lowered: Program) -> Proof:
    """Return the proof that the lowered program equals the gated module; VerifyError above the tolerance."""
    expected = run_example(trained.gated.program.replace(graph_module=trained.module))
    relative = difference(run_example(lowered, trained.gated.program), expected)
    bar = tolerance(expected)
    if not relative <= bar:
        raise VerifyError(
            f"what was lowered differs from the gated model by {relative:.1e}; the bar is {bar:.0e}"
        )
    return Proof(relative, bar, (), (), float("nan"))


def _details(trained: Trained, lowered: Lowered, how: Mapping[str, str] | str) -> dict[str, Any]:
    """Return plain data on a run: its log, what is left of gates and heads, and how units of unequal sizes were lowered."""
    return {
        "gates": len(trained.gated.gates),
        "density": trained.pruner.density,
        "steps": trained.moment.steps,
        "history": [dict(entry) for entry in trained.moment.history],
        "left": open_units(trained.pruner, lowered.units),
        "heads": _heads(trained.gated.base, lowered),
        "lowering": how,
        "padded": dict(lowered.padded),
    }


def open_units(pruner: Pruner, units: tuple[OpenUnits, ...] = ()) -> list[dict[str, Any]]:
    """Return the open units of each axis: a number, or, within the units of another axis, a number for each of those.

    For blocks it is the number of open blocks; what they left of axes comes from `units`, as lowering found it.
    """
    roles = {axis.name: axis.role for axis in analyze(pruner.gated.base).axes}
    found = [
        _entry((gate.of, gate.within), open_, roles.get(gate.of, gate.kind))
        for gate, open_ in pruner.open.items()
    ]
    gates = pruner.gated.gates
    gated = {(gate.of, gate.within) for gate in gates}
    blocks = any(gate.kind == "blocks" for gate in gates)
    more = [unit for unit in units if blocks and (unit.axis, unit.within) not in gated and unit.axis in roles]
    return found + [_entry((unit.axis, unit.within), unit.table, roles[unit.axis]) for unit in more]


def _entry(of: tuple[str, str], open_: Tensor, role: str) -> dict[str, Any]:
    open_ = open_.flatten() if role == "blocks" else open_
    return {
        "axis": of[0],
        "role": role,
        "within": of[1],
        "of": open_.shape[-1] if open_.ndim else 1,
        "open": open_.sum(-1).tolist() if open_.ndim else int(open_),
    }


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
