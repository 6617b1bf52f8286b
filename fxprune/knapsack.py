"""Which option of each site to take, so that the sum of costs keeps to a budget and the sum of errors is least.

The multiple-choice knapsack problem, by dynamic programming over costs in GRID steps; costs are rounded up, so that no plan exceeds its
budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Numbers: TypeAlias = np.ndarray[Any, np.dtype[Any]]

GRID = 4000
"""Steps that a budget is divided into."""


def choose(options: Sequence[Sequence[tuple[float, float]]], budget: float) -> list[int] | None:
    """The place of the chosen (cost, error) in each list; None where even the cheapest options together exceed the budget."""
    if not options:
        return []
    step = budget / GRID
    if step <= 0:
        return None
    best = np.full(GRID + 1, math.inf)
    best[0] = 0.0
    taken: list[Numbers] = []
    for each in options:
        best, choice = _extended(best, each, step)
        taken.append(choice)
    if not np.isfinite(best).any():
        return None
    return _traced(options, taken, int(best.argmin()), step)


def _extended(best: Numbers, each: Sequence[tuple[float, float]], step: float) -> tuple[Numbers, Numbers]:
    """The least error for each cost when one more list has to be chosen from, and what was chosen there."""
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
    options: Sequence[Sequence[tuple[float, float]]],
    taken: Sequence[Numbers],
    end: int,
    step: float,
) -> list[int]:
    places: list[int] = []
    for each, choice in zip(reversed(options), reversed(taken), strict=True):
        places.append(int(choice[end]))
        end -= _units(each[places[-1]][0], step)
    return places[::-1]


def _units(cost: float, step: float) -> int:
    return max(0, math.ceil(cost / step - 1e-9))
