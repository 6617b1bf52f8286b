"""What the passes that remove a fraction of an axis have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fxprune.analysis import Axis
from fxprune.pipeline import Pass, planned, require
from fxprune.program import Program
from fxprune.score import SCORES
from fxprune.select import keep_best, kept_count
from fxprune.selection import Selection


@dataclass(frozen=True)
class Fraction(Pass):
    """Remove a fraction of the units of every axis of some roles."""

    roles: ClassVar[frozenset[str]] = frozenset()
    inexact: ClassVar[bool] = False

    ratio: float  #: fraction of units removed from each axis
    score: str = "magnitude"  #: what decides which units stay
    multiple_of: int = 1  #: the number that stays is rounded up to a multiple of this

    def __post_init__(self) -> None:
        require(0 <= self.ratio < 1, f"ratio must lie in [0, 1), got {self.ratio:g}")
        require(self.score in SCORES, f"score must be one of {', '.join(SCORES)}, got {self.score!r}")
        require(self.multiple_of >= 1, f"multiple_of must be at least 1, got {self.multiple_of}")

    def accepts(self, axis: Axis) -> bool:
        """Whether the pass cuts this axis: by its role, and only exact ones unless the pass is an inexact one."""
        return axis.role in self.roles and (axis.exact or self.inexact)

    def plan(self, program: Program) -> Selection:
        return planned(program, self.accepts, lambda axis: self.keep(program, axis))

    def keep(self, program: Program, axis: Axis) -> Iterable[int]:
        worth = SCORES[self.score].function(program, axis)
        return keep_best(worth, max(axis.least, kept_count(axis.size, self.ratio, self.multiple_of)))
