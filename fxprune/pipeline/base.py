"""Pipelines: an ordered list of passes, written as text and printed back to the same text.

    heads(ratio=0.25), ffn(ratio=0.5), fold

The text is a Python expression list, read with `ast` and never evaluated. A pass is a frozen dataclass: its fields are its options, the
first sentence of its docstring is its help.
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
    """What a pass made: the program, what it kept, the weights that it re-fitted (by name), and details as plain data for a report.

    `factors` are weights that it replaced by two, with the names of these.
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
        """What each axis keeps; empty for a pass that removes no units."""
        return Selection()

    def rewrite(self, program: Program, selection: Selection) -> Program:
        """The program after this pass."""
        return apply(program, selection)

    def run(self, program: Program) -> Outcome:
        """Plan, then rewrite; a pass that has more to tell than its selection does so here."""
        selection = self.plan(program)
        return Outcome(self.rewrite(program, selection), selection)

    def __str__(self) -> str:
        shown = [f for f in options_of(type(self)) if getattr(self, f.name) != f.default]
        options = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)
        return f"{self.name}({options})" if options else self.name


@dataclass(frozen=True)
class Training(Pass):
    """A pass that decides while a student trains: `fxprune train` and `fxprune.training.train` give it rows and a loop."""

    def run(self, program: Program) -> Outcome:
        """Nothing can be decided here."""
        raise SelectionError(
            f"{self.name} decides while a model trains: use `fxprune train`, or fxprune.training.train in Python"
        )

    def finish(self, program: Program, clock: Any, point: Mapping[str, int]) -> Program:
        """What else is done once it was lowered, by what a clock measures at a point; the program computes the same."""
        return program


def options_of(kind: type[Pass]) -> list[dataclasses.Field[Any]]:
    """The fields that a pipeline's text can set; those marked `metadata=PYTHON` hold functions and data, and are given in Python."""
    return [field for field in dataclasses.fields(kind) if not field.metadata.get("python")]


PYTHON = {"python": True}
"""Marks an option that no text can hold: `evaluate: Evaluate | None = field(default=None, metadata=PYTHON)`."""

BATCHES = {**PYTHON, "batches": True}
"""Marks an option `data` that takes the batches of calibration data as a list."""


def planned(
    program: Program, choose: Callable[[Axis], bool], keep: Callable[[Axis], Iterable[int]]
) -> Selection:
    """A selection over the axes that `choose` accepts, each keeping what `keep` says; axes that keep all are left out."""
    analysis = analyze(program)
    axes = [axis for axis in analysis.axes if choose(axis)]
    kept = {axis.name: tuple(keep(axis)) for axis in axes}
    sizes = {axis.name: axis.size for axis in axes}
    cut = {name: indices for name, indices in kept.items() if len(indices) < sizes[name]}
    return Selection(cut, sizes, model=analysis.digest if cut else "")


def require(condition: bool, message: str) -> None:
    """PipelineError with this message unless the condition holds."""
    if not condition:
        raise PipelineError(message)
