"""The knapsack: the best of all combinations but for the rounding of costs, and never above the budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.search.knapsack import GRID, choose_options, frontier

Options = list[list[tuple[float, float]]]

numbers = st.floats(0, 100, allow_subnormal=False)
problems: st.SearchStrategy[Options] = st.lists(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=4
)
whole = st.lists(
    st.lists(st.tuples(st.integers(0, 40).map(float), numbers), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)
many = settings(max_examples=150, deadline=None)


def totals(options: Options, places: Sequence[int]) -> tuple[float, float]:
    """The cost and the error of a choice."""
    chosen = [each[place] for each, place in zip(options, places, strict=True)]
    return math.fsum(cost for cost, _ in chosen), math.fsum(error for _, error in chosen)


def least_error(options: Options, budget: float) -> float:
    """By trying all combinations; infinite where none keeps to the budget."""
    found = [totals(options, places) for places in itertools.product(*map(range, map(len, options)))]
    return min((error for cost, error in found if cost <= budget), default=math.inf)


@many
@given(problems, st.floats(0.5, 400))
def test_only_the_rounding_of_costs_is_lost_and_the_budget_is_kept(options: Options, budget: float) -> None:
    places = choose_options(options, budget)
    promised = least_error(options, budget * (1 - len(options) / GRID))
    if places is None:
        assert promised == math.inf
    else:
        cost, error = totals(options, places)
        assert cost <= budget * (1 + 1e-9)
        assert error <= promised + 1e-9


@many
@given(whole, st.sampled_from([1.0, 5.0, 20.0, 50.0, 80.0, 160.0]))
def test_costs_that_lie_on_the_grid_are_solved_exactly(options: Options, budget: float) -> None:
    places = choose_options(options, budget)
    best = least_error(options, budget)
    assert (places is None) == (best == math.inf)
    if places is not None:
        assert totals(options, places)[0] <= budget
        assert totals(options, places)[1] == pytest.approx(best, abs=1e-9)


@given(problems)
def test_what_costs_more_than_the_budget_is_none(options: Options) -> None:
    cheapest = sum(min(cost for cost, _ in each) for each in options)
    assert choose_options(options, cheapest * 0.99 - 1e-6) is None
    assert choose_options(options, cheapest * 1.01 + 1e-6) is not None


def test_a_list_is_left_dear_where_that_saves_most() -> None:
    options = [[(3.0, 0.0), (1.0, 5.0)], [(3.0, 0.0), (1.0, 4.0)], [(2.0, 1.0), (0.0, 9.0)]]
    assert choose_options(options, 8.0) == [0, 0, 0]
    assert choose_options(options, 6.01) == [0, 1, 0]
    assert choose_options(options, 5.0) == [1, 1, 0]
    assert choose_options(options, 2.0) == [1, 1, 1]
    assert choose_options(options, 1.9) is None


def test_nothing_to_choose() -> None:
    assert choose_options([], 1.0) == []
    assert choose_options([], 0.0) == []
    assert choose_options([[(0.0, 3.0)]], 0.0) is None
    assert choose_options([[(1.0, 0.0)]], -1.0) is None
    assert choose_options([[(0.0, 3.0), (0.0, 2.0)], []], 1.0) is None


def test_many_lists_keep_to_the_budget_although_each_cost_is_rounded() -> None:
    options = [[(1.0 + 1e-7 * i, 0.0), (0.5, 1.0)] for i in range(60)]
    places = choose_options(options, 45.0)
    assert places is not None
    cost, error = totals(options, places)
    assert cost <= 45.0
    assert 30 <= error <= 31


@many
@given(problems)
def test_a_frontier_holds_the_best_of_each_budget(options: Options) -> None:
    found = frontier(options)
    costs, errors = [cost for cost, _ in found], [error for _, error in found]
    assert costs == sorted(set(costs))
    assert errors == sorted(set(errors), reverse=True)
    whole = sum(max(cost for cost, _ in each) for each in options)
    for cost, error in found:
        assert error >= least_error(options, cost * (1 + 1e-9)) - 1e-9
        assert error <= least_error(options, cost - 2 * len(options) * whole / GRID) + 1e-9
    if whole > 0:
        assert found[-1][1] == pytest.approx(least_error(options, math.inf))
