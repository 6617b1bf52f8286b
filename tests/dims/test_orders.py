"""Dims in another order: their masks, their algebra, and orders that transpose factors."""

from __future__ import annotations

import pytest
import torch

from fxprune.dims import atom, find, is_pinned, leaves, product
from fxprune.dims.dim import dim_text, mirror, reordered, total
from fxprune.dims.masks import coordinates, keep_mask
from fxprune.dims.orders import inverse, read_across, transposition
from fxprune.dims.unify import split_at, unify

ORDER = (3, 0, 5, 1, 4, 2)


@pytest.mark.parametrize("places", [(1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 2, 1)])
def test_a_transposition_is_known_by_its_factors(places: tuple[int, ...]) -> None:
    order = tuple(torch.arange(30).view(2, 3, 5).permute(places).flatten().tolist())
    assert read_across((2, 3, 5), places) == order
    sizes, found = transposition(order) or ((), ())
    assert read_across(sizes, found) == order


@pytest.mark.parametrize("order", [ORDER, (0, 2, 1, 3, 5, 4), (1, 0), (0, 1, 2, 4, 3), (0, 2, 4, 1, 3)])
def test_other_orders_are_none(order: tuple[int, ...]) -> None:
    assert transposition(order) is None


def test_an_order_and_its_inverse_are_nothing() -> None:
    dim = atom(6)
    assert reordered(reordered(dim, ORDER), inverse(ORDER)) is dim
    assert dim_text(reordered(dim, ORDER)) == "reordered 6"
    assert dim_text(reordered(dim, (5, 4, 3, 2, 1, 0))) == "reversed 6"
    assert reordered(mirror(dim), ORDER).order == (2, 5, 0, 4, 1, 3)
    assert mirror(reordered(dim, ORDER)).order == ORDER[::-1]


def test_masks_and_coordinates_follow_the_order() -> None:
    dim = atom(6)
    kept = {dim: torch.tensor([True, False, False, True, True, False])}
    assert keep_mask(reordered(dim, ORDER), kept).tolist() == [True, True, False, False, True, False]
    assert coordinates(reordered(dim, ORDER), dim).tolist() == list(ORDER)


def test_an_atom_takes_the_structure_behind_an_order() -> None:
    dim, two, three = atom(6), atom(2), atom(3)
    unify(reordered(dim, ORDER), product([two, three]), "n")
    assert dim_text(dim) == "reordered (2 x 3)"
    back = coordinates(dim, three)[list(ORDER)]
    assert back.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_part_of_a_dim_in_another_order_has_positions_of_its_own() -> None:
    dim = atom(6)
    parts = split_at(reordered(dim, ORDER), 2)
    assert parts is not None
    assert [part.size for part in parts] == [2, 4]
    assert [i for i, unit in enumerate(coordinates(dim, parts[0]).tolist()) if unit >= 0] == [0, 3]


def test_a_transposition_swaps_the_factors_that_are_there() -> None:
    two, three = atom(2), atom(3)
    other = product([atom(3), atom(2)])
    unify(reordered(product([two, three]), (0, 3, 1, 4, 2, 5)), other, "n")
    assert [find(leaf) for leaf in leaves(other)] == [find(three), find(two)]


def test_what_cannot_be_aligned_stays_whole() -> None:
    left, right = product([atom(2), atom(3)]), total([atom(4), atom(2)])
    unify(reordered(left, ORDER), right, "n")
    assert all(is_pinned(leaf) for leaf in (*leaves(left), *leaves(right)))
    dim = atom(6)
    unify(dim, reordered(dim, ORDER), "n")
    assert dim_text(dim) == "!6"
