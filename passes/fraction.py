"""Fraction: the base of passes that remove a fraction of the units of an axis."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fxprune.analysis import Analysis, Axis, Units, analyze
from fxprune.analysis.uniform import group_uniform
from fxprune.errors import RefusedError
from fxprune.ir import Program, Selection
from fxprune.ir.selection import Indices
from fxprune.pipeline import EMPTY, Context, Scoped, require
from fxprune.pipeline.base import planned
from fxprune.pipeline.scope import is_matched, parameters
from fxprune.scores import SCORES, Evidence, Worth
from fxprune.scores.base import share_order


@dataclass(frozen=True)
class Fraction(Scoped):
    """Remove a fraction of the units of every axis of some roles."""

    uses: ClassVar[tuple[str, ...]] = ("data", "loss", "seed")
    inexact: ClassVar[bool] = False

    ratio: float | Mapping[str, float]  #: fraction of each axis that leaves; or {pattern: fraction}
    score: str = "magnitude"  #: what decides which units stay
    multiple_of: int = 1  #: the number that stays is rounded up to a multiple of this
    uniform: bool = False  #: equally many units in all layers, as one number in a config says it

    def __post_init__(self) -> None:
        for ratio in self.ratios.values():
            require(_is_ratio(ratio), f"ratio must lie in [0, 1), got {ratio!r}")
        require(self.score in SCORES, f"score must be one of {', '.join(SCORES)}, got {self.score!r}")
        require(self.multiple_of >= 1, f"multiple_of must be at least 1, got {self.multiple_of}")
        super().__post_init__()

    @property
    def ratios(self) -> Mapping[str, float]:
        """The fraction of units removed, by pattern of module paths."""
        return self.ratio if isinstance(self.ratio, Mapping) else {"*": self.ratio}

    def ratio_of(self, axis: Axis) -> float:
        """Return the fraction that leaves an axis: the least of its parameters', each by the first pattern that matches, else 0."""
        found = (((r for p, r in self.ratios.items() if is_matched([p], name))) for name in parameters(axis))
        return min(next(ratios, 0.0) for ratios in found)

    def patterns(self) -> dict[str, tuple[str, ...]]:
        return {**super().patterns(), "ratio": tuple(self.ratio) if isinstance(self.ratio, Mapping) else ()}

    def accepts(self, axis: Axis) -> bool:
        """Return whether the pass can cut an axis of its roles: exact unless the pass is inexact, and not chosen among."""
        return (axis.exact or self.inexact) and not axis.choices

    def axes(self, analysis: Analysis) -> list[Axis]:
        """Return the axes that the pass cuts."""
        return [axis for axis in self.scope(analysis).axes() if self.accepts(axis)]

    def candidates(self, analysis: Analysis) -> list[Axis]:
        return [
            axis for axis in super().candidates(analysis) if isinstance(axis, Axis) and self.accepts(axis)
        ]

    def needs(self) -> Mapping[str, str]:
        wants = SCORES[self.score].needs_data and any(self.ratios.values())
        return {"data": f"{self.name}(…, score='magnitude')"} if wants else {}

    def plan(self, program: Program, context: Context = EMPTY) -> Selection:
        self.check(context)
        analysis = analyze(program)
        axes = self.axes(analysis)
        asked, counts = self.units(analysis, axes), self.counts(analysis, axes)
        rated = self._rated(analysis, asked, context) if asked and any(self.ratios.values()) else {}
        if self.uniform:
            rated = share_order(analysis, rated)
        kept: dict[str, Indices] = {}
        for units, worth in rated.items():
            choose = worth.rows if units.outer else worth.kept
            kept[units.axis.name] = choose(counts[units.axis.name])
        return planned(analysis, kept, {u.axis.name: u.outer.name for u in rated if u.outer})

    def units(self, analysis: Analysis, axes: Sequence[Axis]) -> list[Units]:
        """Return the units that are ranked: those of each axis, or of each unit of an outer axis separately."""
        return [Units(axis) for axis in axes]

    def idle(self, program: Program) -> str:
        analysis = analyze(program)
        taken = self.axes(analysis)
        if not taken:
            return f": it takes {self._asked()}; the graph has {_census(analysis)}"
        few = ", ".join(f"{axis.name} of {axis.size}" for axis in taken[:3]) + ", …" * (len(taken) > 3)
        return f": ratio={self.ratio!r} leaves all units of {few}"

    def _asked(self) -> str:
        roles, patterns = (
            sorted(self.wanted()),
            [f"{n}={getattr(self, n)!r}" for n in ("only", "skip") if getattr(self, n)],
        )
        within = f" within {', '.join(patterns)}" if patterns else ""
        return f"{'' if self.inexact else 'exact '}axes of {'role ' + ' or '.join(roles) if roles else 'any role'}{within}"

    def _rated(self, analysis: Analysis, asked: Sequence[Units], context: Context) -> dict[Units, Worth]:
        data = context.calibration(analysis.program)
        return SCORES[self.score].rate(Evidence(analysis, data, context.objective("square")), asked)

    def count(self, axis: Axis) -> int:
        """Return how many units of an axis stay."""
        return max(axis.least, kept_count(axis.size, self.ratio_of(axis), self.multiple_of))

    def counts(self, analysis: Analysis, axes: Sequence[Axis]) -> dict[str, int]:
        """Return how many units of each axis stay; RefusedError where uniform sizes don't exist."""
        if not self.uniform:
            return {axis.name: self.count(axis) for axis in axes}
        return {axis.name: self._common(tied) for tied in group_uniform(analysis, axes) for axis in tied}

    def _common(self, tied: Sequence[Axis]) -> int:
        smallest, neediest = min(tied, key=lambda axis: axis.size), max(tied, key=lambda axis: axis.least)
        if neediest.least > smallest.size:
            raise RefusedError(
                f"no number of units is right for all layers: {smallest.name} has {smallest.size}, {neediest.name} needs "
                f"{neediest.least}; leave uniform out"
            )
        wanted = [(axis.size, self.ratio_of(axis)) for axis in tied]
        return max(neediest.least, common_count(wanted, self.multiple_of))


def _census(analysis: Analysis) -> str:
    """Describe the axes of a graph by role, each with the pass that takes it."""
    found = Counter((axis.role, "" if axis.exact else "inexact ") for axis in analysis.axes)
    rows = (f"{n} {how}{role}{_taker(role, bool(how))}" for (role, how), n in sorted(found.items()))
    return ", ".join(rows) or "no axis"


def _taker(role: str, inexact: bool) -> str:
    """Return the pass that takes axes of a role, in parentheses; of inexact ones, one that takes such by `roles`."""
    kinds = [kind for kind in Fraction.__subclasses__() if kind.inexact or not inexact]
    own = next((kind for kind in kinds if role in kind.own), None)
    if own is None and not inexact:
        return ""
    return f" (pass {own.name})" if own else f" (pass {kinds[0].name} with roles={role!r})" if kinds else ""


def _is_ratio(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def kept_count(size: int, ratio: float, multiple_of: int = 1) -> int:
    """Return how many of `size` units stay when at most the fraction `ratio` goes: rounded up to a multiple of `multiple_of`."""
    wanted = size - math.floor(size * ratio + 1e-9)
    return min(size, max(1, math.ceil(wanted / multiple_of)) * multiple_of)


def common_count(axes: Sequence[tuple[int, float]], multiple_of: int = 1) -> int:
    """Return one count for axes of (size, fraction), so that the fraction of all units goes; at most the smallest size."""
    wanted = sum(kept_count(size, ratio) for size, ratio in axes) / len(axes)
    return min(*(size for size, _ in axes), math.ceil(wanted / multiple_of - 1e-9) * multiple_of)
