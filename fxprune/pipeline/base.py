"""Passes: the base classes of the steps of a pipeline, their outcome, and their options.

A pass is a frozen dataclass: its fields are its options, the first sentence of its docstring is its help. A pipeline is an ordered list of
passes, written as text (see `fxprune.pipeline.parse`) and printed back to the same text.

    heads(ratio=0.25), ffn(ratio=0.5), fold

All else that a pass takes (data, rows, a runtime's settings) comes from the `Context`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from fxprune.analysis import Analysis, Axis, Region, analyze
from fxprune.analysis.roles import ROLES
from fxprune.errors import PipelineError, UsageError
from fxprune.ir import Point, Program, Selection
from fxprune.ir.selection import Indices, is_dependent
from fxprune.pipeline.context import EMPTY, SUPPLIES, Context
from fxprune.pipeline.scope import Scope, check_patterns, split_names
from fxprune.rewrite.apply import apply
from fxprune.runtimes import Settings
from fxprune.verification import Proof


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of a pass: the program, the selection, the weights that were re-fitted (by name), and details as plain data for a report.

    `factors` are the weights that were replaced by two, with the names of these. `proof` is that of a pass that trains: its program does
    not follow from the weights of the one before, so that the pass proves what it can. `remarks` are for the reader of a report.
    """

    program: Program
    selection: Selection
    refitted: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    proof: Proof | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass:
    """One step of a pipeline: it plans a selection, and rewrites the program by it. `uses` are the fields of the context that it takes.

    Several processes run a pass that `splits` together, each on its share of the calibration batches; of others, the first one's outcome
    is taken.
    """

    name: ClassVar[str] = ""
    splits: ClassVar[bool] = False
    preserves: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ()

    def plan(self, program: Program, context: Context = EMPTY) -> Selection:
        """Return what each axis keeps; empty for a pass that removes no units."""
        return Selection()

    def idle(self, program: Program) -> str:
        """Return why the pass removes nothing of a program, as a clause after a colon; "" where it can't tell."""
        return ""

    def remarks(self, program: Program) -> tuple[str, ...]:
        """Return what a reader should know of this pass on a program: what it takes instead, what it leaves out."""
        return ()

    def rewrite(self, program: Program, selection: Selection) -> Program:
        """Return the program after this pass."""
        return apply(program, selection)

    def run(self, program: Program, context: Context = EMPTY) -> Outcome:
        """Plan, then rewrite; a pass whose outcome has more than a program and a selection overrides this."""
        selection = self.plan(program, context)
        return Outcome(self.rewrite(program, selection), selection)

    def needs(self) -> Mapping[str, str]:
        """Return the fields of the context that must be given, each with an option that makes it unnecessary ("" for none)."""
        return {}

    def check(self, context: Context) -> None:
        """Raise UsageError where the context lacks something, and say which argument or option supplies it."""
        for name, instead in self.needs().items():
            if getattr(context, name) is None:
                what, option = SUPPLIES[name]
                more = f", or say {instead}" if instead else ""
                raise UsageError(f"{self} needs {what}: give {option}, or Context({name}=…) in Python{more}")

    def check_program(self, program: Program) -> None:
        """Raise UsageError where an option refers to something that the program does not have."""

    def expanded(self) -> tuple[Pass, ...]:
        """Return the passes that this one stands for, itself where it is a single one."""
        return (self,)

    def check_data(self, program: Program, context: Context) -> None:
        """Raise UsageError, before anything runs, where the checked data of the context do not suffice."""

    def points(self, program: Program, context: Context = EMPTY) -> list[Point]:
        """Return the points that a budget of this pass refers to, where a report should measure, too."""
        return []

    def __str__(self) -> str:
        shown = [f for f in options_of(type(self)) if getattr(self, f.name) != f.default]
        options = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)
        return f"{self.name}({options})" if options else self.name


@dataclass(frozen=True)
class Scoped(Pass):
    """Pass that selects axes, regions or weights within its scope. `own` are the roles of axes that it looks for (none given: any)."""

    own: ClassVar[frozenset[str]] = frozenset()

    _: KW_ONLY
    roles: str = ""  #: axes of these roles, as in "heads, ffn"; layers and weights that carry such axes
    only: str = ""  #: patterns of module paths, as in "backbone.*": parts of the model all of whose parameters lie there
    skip: str = ""  #: and none of whose parameters lies here

    def __post_init__(self) -> None:
        known = [role for _, role in ROLES]
        for role in split_names(self.roles):
            require(role in known, f"roles must be some of {', '.join(known)}, got {role!r}")

    def wanted(self) -> frozenset[str]:
        """Return the roles of the axes that the pass looks for, empty for any."""
        return frozenset(split_names(self.roles)) or self.own

    def scope(self, analysis: Analysis) -> Scope:
        """Return what the pass may touch of a program."""
        return Scope(analysis, self.wanted(), split_names(self.only), split_names(self.skip))

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """Return the patterns of module paths, by option."""
        return {name: split_names(getattr(self, name)) for name in ("only", "skip")}

    def check_program(self, program: Program) -> None:
        try:
            check_patterns(program, self.patterns())
        except UsageError as error:
            raise UsageError(f"{self}: {error}") from None

    def candidates(self, analysis: Analysis) -> Sequence[Axis] | Sequence[Region]:
        """Return the axes or regions that the pass would take without patterns."""
        return [axis for axis in analysis.axes if axis.role in self.wanted()]

    def remarks(self, program: Program) -> tuple[str, ...]:
        if not (self.only or self.skip):
            return ()
        analysis = analyze(program)
        left = self.scope(analysis).left_out(self.candidates(analysis))
        few = "; ".join(f"{name} ({why})" for name, why in list(left.items())[:3]) + "; …" * (len(left) > 3)
        return (f"left out {len(left)} that reach beyond its patterns: {few}",) if left else ()


@dataclass(frozen=True)
class Measuring(Scoped):
    """Pass that measures on a runtime; options that are left out are those of the context."""

    _: KW_ONLY
    batch: int | None = None  #: the batch that is measured at
    length: int | None = None  #: and the length, where the program has one
    threads: int | None = None  #: of the runtime
    runtime: str | None = None  #: that is measured
    optimization: str | None = None  #: the runtime's level

    def __post_init__(self) -> None:
        for option in ("batch", "length", "threads"):
            value = getattr(self, option)
            require(value is None or value >= 1, f"{option} must be at least 1, got {value}")
        super().__post_init__()

    def settings(self, context: Context) -> Settings:
        """Return the runtime's settings: those of the options, else of the context."""
        own = {name: getattr(self, name) for name in ("threads", "optimization", "runtime")}
        given = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(context.settings, **given)

    def point(self, program: Program, context: Context = EMPTY) -> Point:
        """Return the point to measure at: batch and length of the options, else of the context."""
        return context.point_of(program, {"batch": self.batch, "length": self.length})


def options_of(kind: type[Pass]) -> list[dataclasses.Field[Any]]:
    """Return the fields of a pass, those that can be given without their names first."""
    return sorted(dataclasses.fields(kind), key=lambda each: bool(each.kw_only))


def planned(
    analysis: Analysis, kept: Mapping[str, Indices], within: Mapping[str, str] = MappingProxyType({})
) -> Selection:
    """Return the selection of the indices that axes keep, those in rows `within` an outer axis each; axes that keep all are left out."""
    sizes = {name: analysis.axis(name).size for name in kept}
    counts = {name: len(rows[0] if is_dependent(rows) else rows) for name, rows in kept.items()}  # type: ignore[arg-type]
    cut = {name: kept[name] for name in kept if counts[name] < sizes[name]}
    return Selection(cut, sizes, within, analysis.digest if cut else "")


def require(condition: bool, message: str) -> None:
    """Raise PipelineError with this message unless the condition holds."""
    if not condition:
        raise PipelineError(message)
