"""Whole attention heads; with grouped queries, whole groups (a key/value head with the query heads that share it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.analysis import Axis, analyze
from fxprune.passes.base import Fraction
from fxprune.pipeline import planned
from fxprune.program import Program
from fxprune.selection import Selection


@dataclass(frozen=True)
class Heads(Fraction):
    """Remove whole attention heads: rows of q, k and v and columns of the output projection, together."""

    name: ClassVar[str] = "heads"
    roles: ClassVar[frozenset[str]] = frozenset({"heads"})

    def plan(self, program: Program) -> Selection:
        chosen = {
            axis.name for axis in outermost([axis for axis in analyze(program).axes if self.accepts(axis)])
        }
        return planned(program, lambda axis: axis.name in chosen, lambda axis: self.keep(program, axis))


def outermost(axes: list[Axis]) -> list[Axis]:
    """Of head axes that multiply in one tensor (groups × queries per group) the one with the most members: cut once, not twice."""
    chosen: list[Axis] = []
    for axis in sorted(axes, key=lambda axis: -len(axis.members)):
        places = {(member.name, member.dim) for member in axis.members}
        if not any(
            places & {(m.name, m.dim) for m in other.members} and _multiply(axis, other) for other in chosen
        ):
            chosen.append(axis)
    return chosen


def _multiply(one: Axis, other: Axis) -> bool:
    """Whether a position of some tensor belongs to a unit of both axes (segments of a fused weight may hold one each)."""
    shared = {(m.name, m.dim): m for m in one.members}
    pairs = [(shared[(m.name, m.dim)], m) for m in other.members if (m.name, m.dim) in shared]
    return any(set(a.indices(0)) & set(b.indices(0)) for a, b in pairs)
