"""Mirrors: the indices of a dim in reverse, by hand and against flipped tensors."""

from __future__ import annotations

import torch

from fxprune.dims import atom, coordinates, is_pinned, leaves, product
from fxprune.dims.dim import dim_text, find, mirror, pin, total
from fxprune.dims.masks import keep_mask
from fxprune.dims.unify import split_at, unify


def test_a_mirror_of_a_mirror_is_the_dim() -> None:
    one, other = atom(3), atom(4)
    assert mirror(mirror(one)) is one
    assert dim_text(mirror(product([one, other]))) == "(reversed 3 x reversed 4)"
    assert dim_text(mirror(total([one, other]))) == "(reversed 4 + reversed 3)"
    assert mirror(atom(1)).kind == "atom"


def test_kept_positions_are_reversed() -> None:
    one, other = atom(3), atom(2)
    kept = {one: torch.tensor([True, True, False]), other: torch.tensor([True, False])}
    for dim in (one, product([one, other]), total([one, product([other, one])])):
        assert keep_mask(mirror(dim), kept).tolist() == keep_mask(dim, kept).flip(0).tolist()
        assert coordinates(mirror(dim), one).tolist() == coordinates(dim, one).flip(0).tolist()


def test_a_mirror_follows_what_its_atom_becomes() -> None:
    one = atom(6)
    turned = mirror(one)
    unify(one, product([atom(2), atom(3)]), "view")
    assert dim_text(turned) == "(reversed 2 x reversed 3)"
    assert [leaf is other for leaf, other in zip(leaves(turned), leaves(one), strict=True)] == [True, True]


def test_mirrors_meet_their_own_structures() -> None:
    one, other = atom(5), total([atom(2), atom(3)])
    unify(mirror(one), other, "add")
    assert dim_text(one) == "(reversed 3 + reversed 2)"
    unify(mirror(other), one, "add")
    assert [is_pinned(leaf) for leaf in leaves(one)] == [False, False]


def test_a_dim_that_is_its_own_mirror_ties_the_two_halves() -> None:
    for size, text in ((6, "(3 + reversed 3)"), (7, "(3 + 1 + reversed 3)")):
        one = atom(size)
        unify(one, mirror(one), "add")
        assert dim_text(one) == text
        assert [find(leaf) for leaf in leaves(one)] == [find(leaf) for leaf in leaves(mirror(one))]


def test_what_is_pinned_meets_its_mirror_as_it_is() -> None:
    one = atom(6)
    pin(one, "places", "node")
    unify(mirror(one), one, "add")
    assert dim_text(one) == "!6"


def test_a_mirror_is_cut_from_its_other_end() -> None:
    one = atom(5)
    before, after = split_at(mirror(one), 2) or (atom(0), atom(0))
    assert (dim_text(before), dim_text(after), dim_text(one)) == ("reversed 2", "reversed 3", "(3 + 2)")
