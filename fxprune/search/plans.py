"""Plans: the options of each site, with costs and errors, and the choice of one option per site within a budget."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fxprune.analysis import Axis
from fxprune.analysis.sites import Site
from fxprune.cost.table import SiteCost, inner_sizes
from fxprune.ir import Selection
from fxprune.scores import Worth
from fxprune.search import knapsack

_LEVELS = 32
"""Approximate number of sizes of a large axis that are options."""


@dataclass(frozen=True)
class Option:
    """Option of a site: the number of units that each of its axes keeps, the cost of the site, and the error.

    `counts` are in the order of the site's axes; they are empty where its branch is removed.
    """

    counts: tuple[int, ...]
    cost: float
    error: float

    @property
    def parts(self) -> tuple[Option, ...]:
        """Options by site: this one alone."""
        return (self,)


@dataclass(frozen=True)
class Joint:
    """One option for each of several sites, with the sums of their costs and errors."""

    parts: tuple[Option, ...]
    cost: float
    error: float


@dataclass(frozen=True, eq=False)
class SiteChoice:
    """Site with its costs and its scores, from which its options are made.

    `gone` is the error without its branch, None where the branch can't be removed; errors of the scores are multiplied by `scale`.
    """

    site: Site
    cost: SiteCost
    worth: Mapping[str, Worth]
    gone: float | None = None
    scale: float = 1.0

    def options(self) -> list[Option]:
        """Return the options by rising cost, without those that another one dominates (no higher cost, no larger error)."""
        inner = [inner_sizes(axis) for axis in self.site.inner]
        sizes = itertools.product(_levels(self.site.main, self.cost.multiple_of), *inner)
        found = [self.option(counts) for counts in sizes]
        if self.gone is not None:
            found.append(Option((), 0.0, self.gone))
        return _undominated(found)

    def option(self, counts: tuple[int, ...]) -> Option:
        """Return the option with these sizes of the axes."""
        main = self.worth[self.site.main.name]
        size = self.site.main.size
        stay = main.order[0, size - counts[0] :]
        error = float(main.errors[0, size - counts[0]])
        for axis, count in zip(self.site.inner, counts[1:], strict=True):
            error += float(self.worth[axis.name].errors[stay, axis.size - count].sum())
        return Option(counts, self.cost.at(counts[0], counts[1:]), error * self.scale)

    @property
    def choices(self) -> tuple[SiteChoice, ...]:
        """This choice alone (`Tied` has several)."""
        return (self,)

    def cheapest(self) -> Option:
        """Return the option that costs least."""
        return self.options()[0]

    def near(self, share: float) -> Option:
        """Return the option that keeps about this share of the main axis, and all of the inner ones."""
        levels = _levels(self.site.main, self.cost.multiple_of)
        return self.option((_nearest(levels, share), *(axis.size for axis in self.site.inner)))


@dataclass(frozen=True, eq=False)
class Tied:
    """Choices that keep equally many units of their main axes, all of the inner ones, and their branches: one item for the knapsack."""

    choices: tuple[SiteChoice, ...]

    def options(self) -> list[Joint]:
        """Return the joint options by rising cost, without those that another one dominates."""
        return _undominated([self.joint(count) for count in self._levels()])

    def cheapest(self) -> Joint:
        """Return the option that costs least."""
        return self.options()[0]

    def joint(self, count: int) -> Joint:
        """Return the joint option with this size of every main axis."""
        whole = [tuple(axis.size for axis in choice.site.inner) for choice in self.choices]
        pairs = zip(self.choices, whole, strict=True)
        parts = tuple(choice.option((count, *inner)) for choice, inner in pairs)
        return Joint(parts, sum(part.cost for part in parts), sum(part.error for part in parts))

    def near(self, share: float) -> Joint:
        """Return the joint option that keeps about this share of the smallest main axis."""
        return self.joint(_nearest(self._levels(), share))

    def _levels(self) -> list[int]:
        mains = [choice.site.main for choice in self.choices]
        least = max(axis.least for axis in mains)
        multiple = max(choice.cost.multiple_of for choice in self.choices)
        levels = _levels(min(mains, key=lambda axis: axis.size), multiple)
        return [level for level in levels if level >= least] or levels[-1:]


def _levels(axis: Axis, multiple_of: int) -> list[int]:
    step = max(multiple_of, axis.size // _LEVELS // multiple_of * multiple_of)
    least = -(-axis.least // step) * step
    return sorted({axis.size, *range(max(step, least), axis.size, step)})


def _nearest(levels: Sequence[int], share: float) -> int:
    return min(levels, key=lambda level: abs(level - share * levels[-1]))


_Kept = TypeVar("_Kept", Option, Joint)


def _undominated(found: Sequence[_Kept]) -> list[_Kept]:
    kept: list[_Kept] = []
    for option in sorted(found, key=lambda o: (o.cost, o.error)):
        if not kept or option.error < kept[-1].error:
            kept.append(option)
    return kept


def cheapest_error(choices: Sequence[SiteChoice | Tied], budget: float) -> list[Option] | None:
    """Return the options of least error whose costs keep to the budget, one for each site; None where none do."""
    options: list[Sequence[Option | Joint]] = [choice.options() for choice in choices]
    places = knapsack.choose_options([[(o.cost, o.error) for o in each] for each in options], budget)
    if places is None:
        return None
    return flat_options([each[i] for each, i in zip(options, places, strict=True)])


def plan_frontier(choices: Sequence[SiteChoice | Tied]) -> list[tuple[float, float]]:
    """Return the (cost, error) of the best plans for budgets of all sizes."""
    return knapsack.frontier([[(o.cost, o.error) for o in choice.options()] for choice in choices])


def flat_options(plan: Sequence[Option | Joint]) -> list[Option]:
    """Return one option for each site; joint options are taken apart."""
    return [part for each in plan for part in each.parts]


def same_share(choices: Sequence[SiteChoice | Tied], budget: float) -> list[Option] | None:
    """Return the options that keep the same share of every main axis, the largest within the budget; None where none was found.

    For scores whose errors can't be compared between axes.
    """
    found: list[Option] | None = None
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        plan = at_share(choices, middle)
        fits = sum(option.cost for option in plan) <= budget
        low, high, found = (middle, high, plan) if fits else (low, middle, found)
    return found


def at_share(choices: Sequence[SiteChoice | Tied], share: float) -> list[Option]:
    """Return the options that keep about this share of every main axis, one for each site."""
    return flat_options([choice.near(share) for choice in choices])


def selection_of(choices: Sequence[SiteChoice], options: Sequence[Option]) -> Selection:
    """Return what the options keep as a selection, in indices of the original."""
    axes: dict[str, list[int] | list[list[int]]] = {}
    sizes: dict[str, int] = {}
    within: dict[str, str] = {}
    removed = tuple(c.site.branch for c, o in zip(choices, options, strict=True) if not o.counts)
    for choice, option in zip(choices, options, strict=True):
        for axis, count in zip(choice.site.axes, option.counts, strict=False):
            if count < axis.size:
                worth, inner = choice.worth[axis.name], axis is not choice.site.main
                axes[axis.name] = worth.rows(count) if inner else worth.kept(count)
                sizes[axis.name] = axis.size
                within |= {axis.name: choice.site.main.name} if inner else {}
    return Selection(axes, sizes, within, removed=removed)
