"""Plans: the cost and the error of an option, the options that are worth comparing, and the selection of a plan."""

from __future__ import annotations

import itertools

import pytest
import torch

from fxprune import analyze
from fxprune.analysis.sites import Site, find_sites
from fxprune.cost.table import Curve, SiteCost
from fxprune.scores import Worth
from fxprune.search.plans import Option, SiteChoice, cheapest_error, same_share, selection_of
from support.slimmable import layer


def site(role: str) -> Site:
    """Of the layer: two heads with four qk and four v dims each, or twelve neurons."""
    return next(found for found in find_sites(analyze(layer()[0])) if found.main.role == role)


def worth(*rows: list[float]) -> Worth:
    """The worth of each unit, in each group; the least goes first."""
    table = torch.tensor(rows, dtype=torch.float64)
    order = table.argsort(dim=1)
    errors = table.gather(1, order).cumsum(1)
    return Worth(order, torch.cat([torch.zeros(len(rows), 1, dtype=torch.float64), errors], 1))


def line(size: int, each: float, rest: float = 0.0) -> Curve:
    return Curve(tuple(range(1, size + 1)), tuple(rest + each * n for n in range(1, size + 1)))


def heads(gone: float | None = None, scale: float = 1.0) -> SiteChoice:
    """The second head is worth less; each head misses other dims."""
    worths = {
        "heads": worth([5.0, 1.0]),
        "qk": worth([0.4, 0.3, 0.2, 0.1], [1.0, 2.0, 3.0, 4.0]),
        "v": worth([7.0, 5.0, 6.0, 8.0], [7.0, 8.0, 5.0, 6.0]),
    }
    cost = SiteCost(line(2, 40.0), (line(4, 8.0, 48.0), line(4, 12.0, 32.0)), 1)
    return SiteChoice(site("heads"), cost, worths, gone, scale)


def neurons(multiple_of: int = 1, gone: float | None = None) -> SiteChoice:
    """The first is worth one, the last twelve."""
    cost = SiteCost(line(12, 10.0), (), multiple_of)
    return SiteChoice(site("ffn"), cost, {"ffn": worth([float(n) for n in range(1, 13)])}, gone)


def test_an_option_errs_by_the_units_that_go_and_the_dims_of_those_that_stay() -> None:
    assert heads().option((2, 4, 4)) == Option((2, 4, 4), 80.0, 0.0)
    assert heads().option((1, 4, 4)) == Option((1, 4, 4), 40.0, 1.0)
    both, one = heads().option((2, 2, 4)), heads().option((1, 2, 3))
    assert both.error == pytest.approx((0.1 + 0.2) + (1.0 + 2.0))
    assert both.cost == 80.0 - 2 * 8.0
    assert one.error == pytest.approx(1.0 + (0.1 + 0.2) + 5.0)
    assert one.cost == 40.0 - (2 * 8.0 + 12.0) / 2
    assert heads(scale=10.0).option((1, 2, 3)).error == pytest.approx(10 * one.error)


@pytest.mark.parametrize("gone", [None, 0.5, 1e6])
def test_options_that_cost_more_err_less(gone: float | None) -> None:
    for choice in (heads(gone), neurons(gone=gone)):
        found = choice.options()
        assert [o.cost for o in found] == sorted({o.cost for o in found})
        assert [o.error for o in found] == sorted({o.error for o in found}, reverse=True)
        assert found[-1].error == 0.0
        assert [o for o in found if not o.counts] == ([] if gone is None else [Option((), 0.0, gone)])
    assert neurons().options()[0] == Option((1,), 10.0, sum(range(1, 12)))
    assert len(neurons().options()) == 12
    assert [option.counts for option in heads().options()] == [
        *((1, qk, v) for v in (1, 2, 3) for qk in (1, 2)),
        *((1, qk, 4) for qk in (1, 2, 3, 4)),
        (2, 4, 4),
    ]


def test_a_branch_that_may_go_for_nothing_is_all_there_is_to_choose() -> None:
    assert neurons(gone=0.0).options() == [Option((), 0.0, 0.0)]


@pytest.mark.parametrize(
    ("multiple", "sizes"), [(1, range(1, 13)), (4, (4, 8, 12)), (5, (5, 10, 12)), (16, (12,))]
)
def test_sizes_are_multiples_or_all(multiple: int, sizes: range | tuple[int, ...]) -> None:
    assert [option.counts[0] for option in neurons(multiple).options()] == list(sizes)


def test_the_cheapest_error_is_that_of_all_combinations() -> None:
    choices = [heads(gone=30.0), neurons(gone=70.0), neurons()]
    pairs = list(itertools.product(*(choice.options() for choice in choices)))
    for budget in (20.0, 75.0, 141.0, 203.0, 290.0):
        found = cheapest_error(choices, budget)
        assert found is not None
        assert sum(option.cost for option in found) <= budget
        best = min(sum(o.error for o in pair) for pair in pairs if sum(o.cost for o in pair) <= budget - 0.3)
        assert sum(option.error for option in found) <= best
    assert cheapest_error(choices, 9.0) is None


def test_plans_for_scores_of_other_currencies_keep_the_same_share_and_no_more_than_the_budget() -> None:
    choices = [heads(gone=0.0), neurons(), neurons(multiple_of=3)]
    shares = {320.0: (2, 12, 12), 270.0: (2, 10, 9), 230.0: (1, 9, 9), 150.0: (1, 5, 6), 80.0: (1, 1, 3)}
    for budget, counts in shares.items():
        found = same_share(choices, budget)
        assert found is not None
        assert [option.counts for option in found] == [(counts[0], 4, 4), (counts[1],), (counts[2],)]
        assert sum(option.cost for option in found) <= budget
    assert same_share(choices, 79.0) is None


def test_a_share_is_the_nearest_size() -> None:
    assert [neurons(4).near(share).counts for share in (0.0, 0.4, 0.6, 1.0)] == [(4,), (4,), (8,), (12,)]
    assert heads().near(0.5).counts == (1, 4, 4)


def test_a_selection_keeps_what_is_worth_most_head_by_head() -> None:
    kept = selection_of([heads(), neurons()], [heads().option((1, 3, 2)), neurons().option((5,))])
    assert (kept["heads"], kept["ffn"]) == ((0,), (7, 8, 9, 10, 11))
    assert (kept.rows("qk"), kept.rows("v")) == (((0, 1, 2), (1, 2, 3)), ((0, 3), (0, 1)))
    assert kept.within == {"qk": "heads", "v": "heads"}
    assert kept.sizes == {"heads": 2, "qk": 4, "v": 4, "ffn": 12}
    assert kept.removed == ()


def test_a_branch_that_goes_keeps_no_axis_and_what_stays_whole_is_not_named() -> None:
    kept = selection_of([heads(), neurons()], [heads().option((2, 4, 4)), Option((), 0.0, 3.0)])
    assert (kept.axes, kept.removed) == ({}, ("branch.ffn",))
