"""Cost table: the cost of each site of a program at each size, measured (or counted) on small programs and interpolated between."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fxprune.analysis import Analysis, Axis
from fxprune.analysis.sites import Site
from fxprune.cost.budgets import Meter
from fxprune.cost.subgraph import Part, part, values_at
from fxprune.ir import Point, Program, Selection
from fxprune.rewrite.shrink import shrink

_FEW = 16
"""Axes of up to this many units are measured at every size."""

_KNOTS = (1 / 32, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
"""Larger axes are measured at these shares of their size."""

GRAINS = ((512, 32), (128, 16), (32, 8), (0, 1))
"""(units, grain): on axes of at least so many units, sizes are rounded to the grain, so that odd widths are compared with even ones."""

ODD = (1, 2, 4, 8, 16)
"""Offsets from a middle size (see `_middle`) that are measured as well, to find whether odd widths are slow on this runtime."""

WIDE = 32
"""Axes of fewer units are not measured at odd widths."""

HURTS = 1.04
"""A width is slow if its cost exceeds the interpolation between its neighbours by more than this factor."""


@dataclass(frozen=True)
class Curve:
    """Cost of a site by the size of one of its axes, the others whole; linear between the measured sizes."""

    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    def at(self, size: int) -> float:
        return float(np.interp(size, self.sizes, self.costs))


@dataclass(frozen=True)
class SiteCost:
    """Cost of one site: a curve for its main axis and for each inner one; the main axis's size should be a multiple of `multiple_of`."""

    main: Curve
    inner: tuple[Curve, ...]
    multiple_of: int

    @property
    def whole(self) -> float:
        return self.main.costs[-1]

    def at(self, count: int, inner: Sequence[int]) -> float:
        """Return the cost with this many units: the savings of the inner axes count for each unit of the main axis that stays."""
        saved = sum(curve.costs[-1] - curve.at(size) for curve, size in zip(self.inner, inner, strict=True))
        share = count / self.main.sizes[-1]
        return max(self.main.at(count) - share * saved, 0.05 * self.main.at(count))


@dataclass
class CostTable:
    """Cost table of a program at a point; sites that compute the same share their measurements.

    With `odd`, main axes are measured at odd widths as well.
    """

    analysis: Analysis
    meter: Meter
    point: Point | None
    odd: bool = False

    def __post_init__(self) -> None:
        self.program: Program = self.analysis.program
        self.values = values_at(self.program, self.point)
        self.known: dict[str, SiteCost] = {}

    def of(self, site: Site) -> SiteCost:
        """Return the cost of a site at all sizes, measured on first use."""
        dense = part(self.program, site.nodes, self.values)
        name = _fingerprint(dense, site.axes)
        if name not in self.known:
            self.known[name] = self._measured(site, dense, name)
        return self.known[name]

    def whole(self, nodes: frozenset[str]) -> float:
        """Return the cost of some nodes as they are."""
        dense = part(self.program, nodes, self.values)
        return self.meter({0: (dense.signature, dense.program)})[0]

    def _measured(self, site: Site, dense: Part, name: str) -> SiteCost:
        asked: dict[tuple[int, int], tuple[str, object]] = {(0, site.main.size): (name, dense.program)}
        for place, axis in enumerate(site.axes):
            for size in _sizes(axis, self.odd and place == 0, inner=place > 0):
                if size < axis.size:
                    asked[place, size] = (f"{name} {place} {size}", self._maker(site, axis, size))
        costs = self.meter(asked)  # type: ignore[arg-type]
        costs |= {(place, axis.size): costs[0, site.main.size] for place, axis in enumerate(site.axes)}
        curves = []
        for place, axis in enumerate(site.axes):
            own = {size: cost for (of, size), cost in costs.items() if of == place}
            curves.append(_curve(_sizes(axis, odd=False, inner=place > 0), own))
        main = {size: cost for (place, size), cost in costs.items() if not place}
        return SiteCost(curves[0], tuple(curves[1:]), _multiple(curves[0], main))

    def _outside(self, site: Site) -> dict[str, object]:
        """Return the values that a cut of the site does not change: those of all nodes that don't compute with its axes."""
        pairs = ((node, value) for node, value in self.values.items() if node.op != "get_attr")
        return {node.name: value for node, value in pairs if node.name not in site.nodes}

    def _maker(self, site: Site, axis: Axis, size: int) -> object:
        def make() -> Program:
            slim = shrink(self.program, Selection({axis.name: tuple(range(size))}))
            return part(slim, site.nodes, values_at(slim, self.point, self._outside(site))).program()

        return make


def _fingerprint(dense: Part, axes: Sequence[Axis]) -> str:
    """Return a hash that is equal for sites that compute the same and whose axes lie alike in their weights."""
    weights = [str(node.target) for node in dense.graph.graph.find_nodes(op="get_attr")]
    place = {name: i for i, name in enumerate(weights)}
    lies = [
        (axis.size, sorted((place[m.name], m.dim, m.indices(0)[:2]) for m in axis.members if m.name in place))
        for axis in axes
    ]
    return hashlib.sha256(f"{dense.signature} {lies}".encode()).hexdigest()


def _sizes(axis: Axis, odd: bool, inner: bool) -> list[int]:
    """Return the sizes at which an axis is measured."""
    least = max(1, axis.least)
    if inner:
        return inner_sizes(axis)
    if axis.size <= _FEW:
        return list(range(least, axis.size + 1))
    grain = next(grain for units, grain in GRAINS if axis.size >= units)
    rounded = (max(least, round(axis.size * share / grain) * grain) for share in _KNOTS)
    knots = {axis.size, *(min(size, axis.size) for size in rounded)}
    if odd and axis.size >= WIDE:
        knots |= {_middle(axis.size) + more for more in _odd(axis.size)}
    return sorted(knots)


def inner_sizes(axis: Axis) -> list[int]:
    """Return the sizes at which an axis within another one is measured and decided."""
    return sorted({max(1, axis.least, axis.size * share // 4) for share in (1, 2, 3, 4)})


def _middle(size: int) -> int:
    """Return a width of about half a size, a multiple of 32 or 16, at which no runtime is slow."""
    return size // 2 // 32 * 32 or 16


def _odd(size: int) -> list[int]:
    return [more for more in ODD if _middle(size) + more < size]


def _curve(sizes: Sequence[int], costs: Mapping[int, float]) -> Curve:
    """Return the curve through these sizes; those measured for odd widths only are left out."""
    return Curve(tuple(sizes), tuple(costs[size] for size in sizes))


def _multiple(curve: Curve, costs: Mapping[int, float]) -> int:
    """Return the smallest power of two whose multiples are not slow, at most 32; 1 where odd widths were not measured."""
    size = curve.sizes[-1]
    middle = _middle(size)
    if size < WIDE or middle + ODD[0] not in costs:
        return 1
    between = [s for s in curve.sizes if s - middle not in ODD or s == size]
    plain = Curve(tuple(between), tuple(costs[s] for s in between))
    hurting = [m for m in _odd(size) if costs[middle + m] > HURTS * plain.at(middle + m)]
    return min(2 * max(hurting), 32) if hurting else 1
