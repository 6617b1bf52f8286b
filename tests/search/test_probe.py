"""Probes: of many sites that compute the same, a sample is tried, and those that are unlike the others."""

from types import SimpleNamespace
from typing import Any

from fxprune.search.probe import ALIKE, _Alike, _alike, _spread


def choices(errors: list[float], cost: object) -> list[Any]:
    return [SimpleNamespace(cost=cost, near=lambda share, e=e: SimpleNamespace(error=e)) for e in errors]


def test_sites_that_share_their_costs_are_alike() -> None:
    one, other = object(), object()
    found = [*choices([1.0], one), *choices([1.0, 2.0], other), *choices([1.0], one)]
    assert _alike(found) == [[0, 3], [1, 2]]


def test_a_sample_reaches_from_the_first_to_the_last() -> None:
    assert _spread(range(ALIKE)) == list(range(ALIKE))
    assert _spread(range(10, 40)) == [10, 14, 18, 22, 27, 31, 35, 39]


def test_what_is_unlike_is_tried_and_the_rest_have_the_median_of_the_sample() -> None:
    """The layer with massive activations is in no sample, and its predicted error tells it."""
    places = list(range(30))
    errors = [1.0] * 30
    errors[11], errors[13], errors[15] = 40.0, 0.1, 2.5
    alike = _Alike(places, _spread(places), choices(errors, object()))
    assert alike.tried() == {0, 4, 8, 12, 17, 21, 25, 29, 11, 13}
    known = {place: 2.0 + place / 100 for place in alike.tried()} | {11: 0.03}
    scales = alike.scales(known)
    assert (scales[11], scales[13], scales[29]) == (0.03, 2.13, 2.29)
    assert scales[15] == scales[1] == (2.12 + 2.17) / 2
