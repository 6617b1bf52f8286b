"""Multiple-choice knapsack: choose one option of each site, so that costs keep to a budget and the sum of errors is least.

Solved by dynamic programming over costs in GRID steps; costs are rounded up, so that no plan exceeds its budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Numbers: TypeAlias = np.ndarray[Any, np.dtype[Any]]

GRID = 4000
"""Number of steps that a budget is divided into."""

_POINTS = 48
"""Number of budgets, up to the whole cost, for which a frontier is computed."""


def choose_options(options: Sequence[Sequence[tuple[float, float]]], budget: float) -> list[int] | None:
    """Return the index of the chosen (cost, error) in each list; None where even the cheapest options together exceed the budget."""
    if not options:
        return []
    step = budget / GRID
    if step <= 0:
        return None
    best, taken = _solved(options, step)
    if not np.isfinite(best).any():
        return None
    return _traced(options, taken, int(best.argmin()), step)


def frontier(options: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the (cost, error) of the best combinations for budgets up to the whole cost; errors fall as costs rise."""
    whole = sum(max(cost for cost, _ in each) for each in options)
    step = whole * (1 + len(options) / GRID) / GRID  # room for what rounding adds to the costs
    if step <= 0:
        return []
    best, taken = _solved(options, step)
    ends = {int(best[: GRID * i // _POINTS + 1].argmin()) for i in range(1, _POINTS + 1)}
    found: list[tuple[float, float]] = []
    for end in sorted(end for end in ends if np.isfinite(best[end])):
        chosen = [each[i] for each, i in zip(options, _traced(options, taken, end, step), strict=True)]
        cost, error = (sum(values) for values in zip(*chosen, strict=True))
        if not found or (cost > found[-1][0] and error < found[-1][1]):
            found.append((cost, error))
    return found


def _solved(options: Sequence[Sequence[tuple[float, float]]], step: float) -> tuple[Numbers, list[Numbers]]:
    """Return the least error for each cost in steps, and for each list the index chosen at each cost."""
    best = np.full(GRID + 1, math.inf)
    best[0] = 0.0
    taken: list[Numbers] = []
    for each in options:
        best, choice = _extended(best, each, step)
        taken.append(choice)
    return best, taken


def _extended(best: Numbers, each: Sequence[tuple[float, float]], step: float) -> tuple[Numbers, Numbers]:
    """Return the least error for each cost with one more list, and the index chosen from it (−1 where the cost can't be met)."""
    after = np.full(GRID + 1, math.inf)
    choice = np.full(GRID + 1, -1)
    for place, (cost, error) in enumerate(each):
        units = _units(cost, step)
        if units <= GRID:
            candidate = best[: GRID + 1 - units] + error
            better = candidate < after[units:]
            after[units:][better] = candidate[better]
            choice[units:][better] = place
    return after, choice


def _traced(
    options: Sequence[Sequence[tuple[float, float]]], taken: Sequence[Numbers], end: int, step: float
) -> list[int]:
    places: list[int] = []
    for each, choice in zip(reversed(options), reversed(taken), strict=True):
        places.append(int(choice[end]))
        end -= _units(each[places[-1]][0], step)
    return places[::-1]


def _units(cost: float, step: float) -> int:
    return max(0, math.ceil(cost / step - 1e-9))
