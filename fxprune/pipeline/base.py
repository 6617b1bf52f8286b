"""Passes: the base classes of the steps of a pipeline, their outcome, and their options.

A pass is a frozen dataclass: its fields are its options, the first sentence of its docstring is its help. A pipeline is an ordered list of
passes, written as text (see `fxprune.pipeline.parse`) and printed back to the same text.

    heads(ratio=0.25), ffn(ratio=0.5), fold
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fxprune.analysis import Axis, analyze
from fxprune.errors import PipelineError, SelectionError
from fxprune.ir import Program, Selection
from fxprune.rewrite.apply import apply


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of a pass: the program, the selection, the weights that were re-fitted (by name), and details as plain data for a report.

    `factors` are the weights that were replaced by two, with the names of these.
    """

    program: Program
    selection: Selection
    refitted: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """One step of a pipeline: it plans a selection, and rewrites the program by it."""

    name: ClassVar[str] = ""
    preserves: ClassVar[bool] = False

    def plan(self, program: Program) -> Selection:
        """Return what each axis keeps; empty for a pass that removes no units."""
        return Selection()

    def rewrite(self, program: Program, selection: Selection) -> Program:
        """Return the program after this pass."""
        return apply(program, selection)

    def run(self, program: Program) -> Outcome:
        """Plan, then rewrite; a pass whose outcome has more than a program and a selection overrides this."""
        selection = self.plan(program)
        return Outcome(self.rewrite(program, selection), selection)

    def __str__(self) -> str:
        shown = [f for f in options_of(type(self)) if getattr(self, f.name) != f.default]
        options = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)
        return f"{self.name}({options})" if options else self.name


@dataclass(frozen=True)
class Training(Pass):
    """Pass whose selection is made during training: `fxprune train` and `fxprune.training.train` supply the rows and the loop."""

    def run(self, program: Program) -> Outcome:
        """Raise SelectionError: nothing can be decided without training."""
        raise SelectionError(
            f"{self.name} decides while a model trains: use `fxprune train`, or fxprune.training.train in Python"
        )

    def finish(self, program: Program, clock: Any, point: Mapping[str, int]) -> Program:
        """Return the lowered program after steps that depend on a clock's measurements at a point; it computes the same."""
        return program


def options_of(kind: type[Pass]) -> list[dataclasses.Field[Any]]:
    """Return the fields that a pipeline's text can set; those marked `metadata=PYTHON` (functions and data) are given in Python."""
    return [field for field in dataclasses.fields(kind) if not field.metadata.get("python")]


PYTHON = {"python": True}
"""Mark of an option that can't be written as text: `evaluate: Evaluate | None = field(default=None, metadata=PYTHON)`."""

BATCHES = {**PYTHON, "batches": True}
"""Mark of an option `data` that takes the batches of calibration data as a list."""


def planned(
    program: Program, choose: Callable[[Axis], bool], keep: Callable[[Axis], Iterable[int]]
) -> Selection:
    """Return a selection over the axes that `choose` accepts, each with the indices from `keep`; axes that keep all are left out."""
    analysis = analyze(program)
    axes = [axis for axis in analysis.axes if choose(axis)]
    kept = {axis.name: tuple(keep(axis)) for axis in axes}
    sizes = {axis.name: axis.size for axis in axes}
    cut = {name: indices for name, indices in kept.items() if len(indices) < sizes[name]}
    return Selection(cut, sizes, model=analysis.digest if cut else "")


def require(condition: bool, message: str) -> None:
    """Raise PipelineError with this message unless the condition holds."""
    if not condition:
        raise PipelineError(message)
