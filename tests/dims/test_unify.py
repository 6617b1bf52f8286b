"""Unification by hand: what two dims become, what is pinned, and why."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest

from fxprune.dims import Dim, atom, coordinates, find, is_pinned, leaves, product
from fxprune.dims.dim import Pin, dim_text, factors, pin, pinned, segments, total
from fxprune.dims.unify import split_at, unify, unify_products


def named(dims: Sequence[Dim]) -> list[str]:
    """Dims as flat text, atoms numbered in the order of appearance; sizes of 1, which never unify, go without a number."""
    names: dict[Dim, str] = {}
    for leaf in (leaf for dim in dims for leaf in leaves(dim)):
        if leaf.size > 1:
            names.setdefault(leaf, f"a{len(names)}:{leaf.size}" + "!" * is_pinned(leaf))
    return [flat(dim, names) for dim in dims]


def flat(dim: Dim, names: dict[Dim, str]) -> str:
    dim = find(dim)
    if dim.kind == "atom":
        return names.get(dim, str(dim.size))
    joint, parts = (" x ", factors(dim)) if dim.kind == "product" else (" + ", segments(dim))
    texts = [flat(part, names) for part in parts]
    return texts[0] if len(texts) == 1 else f"({joint.join(texts)})"


def test_pins_reach_the_leaves() -> None:
    whole = atom(12)
    unify(whole, product([atom(3), total([atom(1), atom(3)])]), "view")
    pin(whole, "a reason", "node")
    assert all(is_pinned(leaf) for leaf in leaves(whole))
    found = pinned(whole)
    assert found is not None
    assert (found.why, found.node) == ("a reason", "node")


def test_a_pin_reaches_leaves_that_come_later() -> None:
    whole = atom(12)
    pin(whole, "a reason", "node")
    outer, inner = atom(3), atom(4)
    unify(whole, product([outer, inner]), "view")
    assert is_pinned(outer)
    assert is_pinned(inner)


def test_a_pin_reaches_both_parts_of_a_segment_that_is_cut() -> None:
    """The boundary at 5 falls into the pinned 8, so that 5 and 3 of it stay whole, and with them all that is unified with them."""
    one, other = total([atom(8), atom(5)]), total([atom(5), atom(8)])
    pin(segments(one)[0], "a reason", "node")
    unify(one, other, "cat")
    assert named([one]) == ["(a0:5! + a1:3! + a2:5)"]
    assert named([other]) == ["(a0:5! + a1:3! + a2:5)"]
    assert pinned(segments(other)[1]) == Pin("a reason", "node")


def test_a_pin_of_either_side_reaches_the_other_with_its_reason() -> None:
    for place in (0, 1):
        sides = [product([atom(2), atom(3)]), total([atom(4), atom(2)])]
        pin(sides[place], "a reason", "there")
        unify(sides[0], sides[1], "here")
        assert [pinned(side) for side in sides] == [Pin("a reason", "there")] * 2


def test_a_pin_keeps_its_first_reason() -> None:
    dim = total([atom(4), atom(2)])
    pin(dim.parts[1], "the first", "a")
    pin(dim, "the second", "b")
    assert [pinned(part) for part in dim.parts] == [Pin("the second", "b"), Pin("the first", "a")]
    assert pinned(dim) == Pin("the second", "b")


def test_a_size_of_1_has_nothing_to_remove() -> None:
    assert pinned(atom(1)) == Pin("a size of 1 has nothing to remove", "")
    assert pinned(atom(2)) is None
    both = total([atom(1), atom(3)])
    pin(both.parts[1], "a reason", "node")
    assert pinned(both) == Pin("a reason", "node")


def test_nothing_at_all_is_a_dim_too() -> None:
    """A product of no dims has the size 1, a sum of none the size 0."""
    assert [product(()).size, product([atom(1), atom(1)]).size] == [1, 1]
    assert [total(()).size, total([atom(0), atom(0)]).size] == [0, 0]
    assert [factors(atom(1)), segments(atom(0)), factors(product(()))] == [[], [], []]
    assert atom(0).size == 0
    with pytest.raises(ValueError, match="a dimension can't have -1 indices"):
        atom(-1)


def test_a_dim_as_text() -> None:
    heads, size = atom(4), atom(8)
    pin(size, "a reason", "node")
    whole = product([heads, total([size, atom(2)])])
    assert repr(whole) == dim_text(whole) == "(4 x (!8 + 2))"
    assert dim_text(whole, {heads: "heads:4"}) == "(heads:4 x (!8 + 2))"


def test_find_leads_to_the_last_of_a_chain() -> None:
    chain = [atom(6) for _ in range(5)]
    for one, other in itertools.pairwise(chain):
        unify(one, other, "n")
    assert {find(dim) for dim in chain} == {chain[-1]}
    assert {dim._to for dim in chain[:-1]} == {chain[-1]}


def test_a_partial_pin_leaves_the_rest_free() -> None:
    one, other = atom(4), atom(8)
    pin(one, "a reason", "node")
    assert pinned(total([one, other])) is None
    assert not is_pinned(other)


def test_different_sizes_pin_both() -> None:
    one, other = atom(4), atom(6)
    unify(one, other, "node")
    assert is_pinned(one)
    assert is_pinned(other)


def test_size_one_broadcasts_and_stays_itself() -> None:
    one, other = atom(1), atom(6)
    unify(one, other, "node")
    assert find(one) is not find(other)
    assert not is_pinned(other)


def test_heads_and_head_size_come_out_of_a_view() -> None:
    width, heads, size = atom(12), atom(3), atom(4)
    unify_products([width], [heads, size], "view")
    assert named([width, heads, size]) == ["(a0:3 x a1:4)", "a0:3", "a1:4"]


def test_rotary_halves_are_one_axis() -> None:
    size = atom(8)
    first, second = split_at(size, 4) or (atom(0), atom(0))
    unify(size, total([second, first]), "rotate_half")
    assert named([size]) == ["(a0:4 + a0:4)"]


def test_fused_qkv_of_stacked_heads_keeps_the_roles_apart() -> None:
    fused = atom(24)
    q, k, v = (product([atom(2), atom(4)]) for _ in range(3))
    unify(fused, total([q, k, v]), "cat")
    assert named([fused]) == ["((a0:2 x a1:4) + (a2:2 x a3:4) + (a4:2 x a5:4))"]


def test_product_against_sum_keeps_the_longest_tail() -> None:
    left, right = product([atom(3), atom(2), atom(4)]), total([atom(8), atom(16)])
    unify(left, right, "node")
    assert named([left]) == ["((1 + a0:2) x a1:2 x a2:4)"]


def test_a_boundary_inside_a_block_makes_the_outer_factor_rigid() -> None:
    outer, inner = atom(3), atom(4)
    unify(product([outer, inner]), total([atom(6), atom(6)]), "node")
    assert is_pinned(outer)
    assert named([inner]) == ["(a0:2 + a0:2)"] or not is_pinned(inner)


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        # factor lists: chunk by chunk, refined at the cuts of both
        ("2*6", "4*3", ["(a0:2 x a1:2 x a2:3)"] * 2),
        ("6*4", "6*4", ["(a0:6 x a1:4)"] * 2),
        ("2*3*4", "6*2*2", ["(a0:2 x a1:3 x a2:2 x a3:2)"] * 2),
        # cuts of which none divides the other: what consists of both, and what both consist of
        ("4*6", "6*4", ["(a0:2 x a1:2! x a2:3! x a3:2)", "(a0:2 x a4:3! x a5:2! x a3:2)"]),
        ("3*4", "4*3", ["(a0:3! x a1:4!)", "(a2:4! x a3:3!)"]),
        ("4*9", "6*6", ["(a0:2 x a1:2! x a2:3! x a3:3)", "(a0:2 x a4:3! x a5:2! x a3:3)"]),
        (
            "5*4*6*7",
            "5*6*28",
            ["(a0:5 x a1:2 x a2:2! x a3:3! x a4:2 x a5:7)", "(a0:5 x a1:2 x a6:3! x a7:2! x a4:2 x a5:7)"],
        ),
        ("24", "2*3*4", ["(a0:2 x a1:3 x a2:4)"] * 2),
        # segments: run by run, cut at the boundaries of both
        ("3+5", "5+3", ["(a0:3 + a1:2 + a2:3)"] * 2),
        ("2+2+4", "4+4", ["(a0:2 + a1:2 + a2:4)"] * 2),
        ("4+4", "2+2+4", ["(a0:2 + a1:2 + a2:4)"] * 2),
        ("1+2+3", "3+2+1", ["(1 + a0:2 + a1:2 + 1)"] * 2),
        ("6", "1+2+3", ["(1 + a0:2 + a1:3)"] * 2),
        # a product against segments: the inner factor repeats, the outer one is a sum
        ("3*4", "4+8", ["((1 + a0:2) x a1:4)", "(a1:4 + (a0:2 x a1:4))"]),
        ("4+8", "3*4", ["(a0:4 + (a1:2 x a0:4))", "((1 + a1:2) x a0:4)"]),
        ("2*4", "2+2+4", ["((1 + 1) x (a0:2 + a1:2))", "(a0:2 + a1:2 + a0:2 + a1:2)"]),
        # where a boundary cuts the inner factor, the outer one is rigid, and a long one is a conflict
        ("2*3", "2+4", ["(a0:2! x (a1:2 + 1))", "(a1:2 + 1 + a1:2 + 1)"]),
        ("9*2", "3+15", ["(a0:9! x a1:2!)", "(a2:3! + a3:15!)"]),
    ],
)
def test_what_two_structures_have_in_common(left: str, right: str, wanted: list[str]) -> None:
    one, other = made(left), made(right)
    unify(one, other, "node")
    assert named([one, other]) == wanted


def test_cuts_that_cross_leave_what_no_cut_straddles_in_any_order() -> None:
    """The oracle counts: a factor between two cuts is free where each cut of each side divides the smaller or is divided by the larger."""
    chains = ["4*6*5", "6*4*5", "3*8*5", "2*12*5", "24*5", "8*15", "2*2*6*5", "120"]
    for several in itertools.combinations(chains, 3):
        for order in itertools.permutations(several):
            first, *others = [made(text) if "*" in text else atom(120) for text in order]
            for other in others:
                unify_products([first], [other], "node")
            assert free_steps(first) == steps_of(several)


def free_steps(dim: Dim) -> set[tuple[int, int]]:
    """The free atoms of a product by their inner and outer cut."""
    found, low = set(), 1
    for factor in reversed(factors(dim)):
        if not is_pinned(factor):
            found.add((low, low * factor.size))
        low *= factor.size
    return found


def steps_of(chains: Sequence[str]) -> set[tuple[int, int]]:
    cuts = {120, 1}
    for sizes in ([int(size) for size in text.split("*")] for text in chains):
        cuts |= {math.prod(sizes[i:]) for i in range(len(sizes))}
    every = {divisor for divisor in range(1, 121) if 120 % divisor == 0}
    good = sorted(each for each in every if all(each % cut == 0 or cut % each == 0 for cut in cuts))
    needed = [
        each
        for each in good
        if each in cuts or each in {f(a, b) for a in cuts for b in cuts for f in (math.gcd, math.lcm)}
    ]
    steps = itertools.pairwise(needed)
    return {(low, high) for low, high in steps if not any(low < cut < high for cut in cuts)}


def test_a_product_among_segments_meets_the_segments_in_its_place() -> None:
    """(2 x 3) against 2 + 4: the boundary makes the 2 rigid, and what follows is not touched."""
    for turned in (False, True):
        one, other = total([made("2*3"), atom(5)]), made("2+4+5")
        unify(*((other, one) if turned else (one, other)), "node")
        assert named([one]) == ["((a0:2! x (a1:2 + 1)) + a2:5)"]
        assert named([other]) == ["(a0:2 + 1 + a0:2 + 1 + a1:5)"]


def made(text: str) -> Dim:
    """The dim of a text: `2*6` is a product, `3+5` a sum."""
    join = product if "*" in text else total
    return join([atom(int(size)) for size in text.replace("*", "+").split("+")])


def test_a_thousand_segments_that_share_no_boundary() -> None:
    """1 + 3 + 3 + … against 3 + 3 + … + 1: what is left is 1 + 2 + 1 + 2 + … + 1, however deep Python may recurse."""
    threes = [[atom(3) for _ in range(1000)] for _ in range(2)]
    one, other = total([atom(1), *threes[0]]), total([*threes[1], atom(1)])
    unify(one, other, "node")
    assert [leaf.size for leaf in leaves(one)] == [leaf.size for leaf in leaves(other)] == [1, 2] * 1000 + [1]
    twos = [[leaf for leaf in leaves(dim) if leaf.size == 2] for dim in (one, other)]
    assert twos[0] == twos[1]


def test_what_does_not_fit_says_so() -> None:
    for left, right, why in (
        ("3*4", "4*3", "can't align 3 x 4 with 4 x 3"),
        ("9*2", "3+15", "9 blocks of 2 straddle the borders of a concatenation, 3 + 15"),
        ("4", "5", "can't align 4 with 5"),
        ("2*3", "2+4", "a boundary inside 3 makes the outer factor rigid"),
    ):
        one, other = made(left), made(right)
        unify(one, other, "node")
        assert next(leaf._pin for leaf in leaves(one)) == Pin(why, "node")


def test_parts_on_either_side_of_a_place() -> None:
    """In a sum at a border or within a segment; in a product only between whole inner blocks."""
    for dim, place, wanted in (
        (made("2+3+4"), 2, ["a0:2", "(a1:3 + a2:4)"]),
        (made("2+3+4"), 5, ["(a0:2 + a1:3)", "a2:4"]),
        (made("2+3+4"), 7, ["(a0:2 + a1:3 + a2:2)", "a3:2"]),
        (made("2+5+4"), 4, ["(a0:2 + a1:2)", "(a2:3 + a3:4)"]),
        (made("4*3"), 6, ["(a0:2 x a1:3)", "(a2:2 x a1:3)"]),
        (made("5*2*3"), 12, ["(a0:2 x a1:2 x a2:3)", "(a3:3 x a1:2 x a2:3)"]),
        (total([made("4*3"), atom(4)]), 3, ["a0:3", "((a1:3 x a0:3) + a2:4)"]),
    ):
        assert named(split_at(dim, place) or []) == wanted
    assert split_at(made("4*3"), 5) is None
    assert split_at(total([made("4*3"), atom(4)]), 5) is None


def test_what_is_pinned_on_both_sides_is_not_refined() -> None:
    one, other = total([atom(5), atom(8)]), total([atom(8), atom(5)])
    pin(one, "places", "a")
    pin(other, "places", "b")
    unify(one, other, "node")
    assert len(list(leaves(one))) == len(list(leaves(other))) == 2


@pytest.mark.parametrize("blocks_first", [True, False])
def test_blocks_that_straddle_other_blocks_leave_what_all_consist_of(blocks_first: bool) -> None:
    """4 blocks of 12 over 4 blocks of 8 and 4 of 4, in either order: what is left is 12 equal blocks of 4."""
    one, other = atom(32), atom(16)
    own = [(one, product([atom(4), atom(8)])), (other, product([atom(4), atom(4)]))]
    both = [(total([one, other]), product([atom(4), atom(12)]))]
    for left, right in [*own, *both] if blocks_first else [*both, *own]:
        unify(left, right, "here")
    free = {leaf for dim in (one, other) for leaf in leaves(dim) if leaf.size > 1 and not is_pinned(leaf)}
    assert [leaf.size for leaf in free] == [4]
    (leaf,) = free
    assert coordinates(one, leaf).tolist() == [0, 1, 2, 3] * 8
    assert coordinates(other, leaf).tolist() == [0, 1, 2, 3] * 4
