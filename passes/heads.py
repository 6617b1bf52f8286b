"""Head pruning: whole attention heads; with grouped queries, whole groups (a key/value head with the query heads that share it).

Where so few groups can't lose the fraction that is asked for (a third of two), each group loses equally many of its query heads instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fxprune.analysis import Analysis, Axis, Units, analyze
from fxprune.analysis.sites import multiply, outermost
from fxprune.ir import Program
from fxprune.passes.fraction import Fraction


@dataclass(frozen=True)
class Heads(Fraction):
    """Remove whole attention heads: rows of q, k and v and columns of the output projection, together."""

    name: ClassVar[str] = "heads"
    own: ClassVar[frozenset[str]] = frozenset({"heads"})

    def axes(self, analysis: Analysis) -> list[Axis]:
        found = super().axes(analysis)
        outer, inner = outermost(found), self.within_groups(analysis)
        taken = {inner[axis.name].name if axis.name in inner else axis.name for axis in outer}
        return [axis for axis in found if axis.name in taken]

    def within_groups(self, analysis: Analysis) -> dict[str, Axis]:
        """Return, for groups of query heads too few to lose the fraction, the axis of the heads within each group, where it can."""
        found = super().axes(analysis)
        outer = [axis for axis in outermost(found) if self.ratio_of(axis) and self.count(axis) == axis.size]
        others = [axis for axis in found if self.count(axis) < axis.size]
        pairs = [(one, other) for one in outer for other in others if multiply(one, other)]
        return {one.name: other for one, other in reversed(pairs)}

    def units(self, analysis: Analysis, axes: Sequence[Axis]) -> list[Units]:
        groups = {axis.name: analysis.axis(name) for name, axis in self.within_groups(analysis).items()}
        free = {name: group for name, group in groups.items() if group.name in analysis.within(name)}
        return [Units(axis, free.get(axis.name)) for axis in axes]

    def remarks(self, program: Program) -> tuple[str, ...]:
        analysis = analyze(program)
        told = [
            f"{axis.name} ({self.count(axis)} of {axis.size} stay in each of the {analysis.axis(group).size} units of {group})"
            for group, axis in self.within_groups(analysis).items()
        ]
        few = "; ".join(told[:3]) + "; …" * (len(told) > 3)
        own = (f"took query heads within groups that are too few to lose any: {few}",) if told else ()
        return (*super().remarks(program), *own)
