"""The algebra of dims: positions, checked against torch with index tensors, and unification."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxprune.dims import Dim, atom, find, is_pinned, leaves, product
from fxprune.dims.dim import Pin, dim_text, factors, pin, pinned, segments, total
from fxprune.dims.masks import keep_mask
from fxprune.dims.unify import split_at, unify, unify_products

Value = tuple[Tensor, tuple[Dim, ...]]
quick = settings(max_examples=80, deadline=None)


def shape_of(dims: Sequence[Dim]) -> list[int]:
    return [dim.size for dim in dims]


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


# --- positions by the algebra, against torch ---------------------------------------------------------------


@st.composite
def factorings(draw: st.DrawFn, size: int) -> list[int]:
    """A list of numbers with this product."""
    parts: list[int] = []
    while size > 1:
        parts.append(draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0])))
        size //= parts[-1]
    return parts or [1]


def viewed(value: Value, sizes: list[int]) -> Value:
    tensor, dims = value
    fresh = tuple(atom(size) for size in sizes)
    unify_products(dims, fresh, "view")
    return tensor.reshape(sizes), fresh


def permuted(value: Value, order: Sequence[int]) -> Value:
    return value[0].permute(tuple(order)), tuple(value[1][i] for i in order)


def split(value: Value, place: int, at: int) -> tuple[Value, Value]:
    tensor, dims = value
    parts = atom(at), atom(dims[place].size - at)
    unify(dims[place], total(parts), "split")
    cut = torch.split(tensor, [part.size for part in parts], dim=place)
    one, other = ((c, (*dims[:place], p, *dims[place + 1 :])) for c, p in zip(cut, parts, strict=True))
    return one, other


def joined(one: Value, other: Value, place: int) -> Value:
    for i, (left, right) in enumerate(zip(one[1], other[1], strict=True)):
        if i != place:
            unify(left, right, "cat")
    dims = list(one[1])
    dims[place] = total([one[1][place], other[1][place]])
    return torch.cat([one[0], other[0]], dim=place), tuple(dims)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Dim, list[Value]]:
    """A source dim, and values that views, permutations, splits and concatenations made of its positions."""
    size = draw(st.sampled_from([6, 8, 12, 24, 36]))
    source = atom(size)
    value: Value = (torch.arange(size), (source,))
    seen = [value]
    for _ in range(draw(st.integers(1, 5))):
        value = draw(moves(value))
        seen.append(value)
    return source, seen


@st.composite
def moves(draw: st.DrawFn, value: Value) -> Value:
    tensor, dims = value
    kind = draw(st.sampled_from(["view", "permute", "swap", "twice"]))
    if kind == "view":
        return viewed(value, draw(factorings(tensor.numel())))
    if kind == "permute":
        return permuted(value, draw(st.permutations(range(len(dims)))))
    place = draw(st.integers(0, len(dims) - 1))
    if kind == "twice":
        return joined(value, value, place) if tensor.numel() <= 72 else value
    if dims[place].size < 2:
        return value
    one, other = split(value, place, draw(st.integers(1, dims[place].size - 1)))
    return joined(other, one, place)


@quick
@given(chain=chains(), seed=st.integers(0, 99))
def test_kept_positions_are_the_ones_that_hold_kept_elements(
    chain: tuple[Dim, list[Value]], seed: int
) -> None:
    source, values = chain
    kept = random_masks([source], seed)
    elements = keep_mask(source, kept)
    for tensor, dims in values:
        inside = torch.ones(tensor.shape, dtype=torch.bool)
        for place, dim in enumerate(dims):
            shape = [-1 if i == place else 1 for i in range(tensor.dim())]
            inside &= keep_mask(dim, kept).view(shape)
        assert torch.equal(inside, elements[tensor])


@quick
@given(chain=chains())
def test_sizes_stay_what_torch_says(chain: tuple[Dim, list[Value]]) -> None:
    for tensor, dims in chain[1]:
        assert shape_of(dims) == list(tensor.shape)
        assert all(consistent(dim) for dim in dims)


def consistent(dim: Dim) -> bool:
    dim = find(dim)
    if dim.kind == "atom":
        return True
    join = math.prod if dim.kind == "product" else sum
    return join(find(part).size for part in dim.parts) == dim.size and all(map(consistent, dim.parts))


def random_masks(dims: Sequence[Dim], seed: int) -> dict[Dim, Tensor]:
    """For each free atom a random choice of at least one index."""
    generator = torch.Generator().manual_seed(seed)
    masks: dict[Dim, Tensor] = {}
    for leaf in dict.fromkeys(leaf for dim in dims for leaf in leaves(dim)):
        if not is_pinned(leaf) and leaf.size > 1:
            mask = torch.rand(leaf.size, generator=generator) < 0.6
            mask[int(torch.randint(leaf.size, (), generator=generator))] = True
            masks[leaf] = mask
    return masks


# --- unification -------------------------------------------------------------------------------------------


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, int]:
    """A size, and a seed from which two structures of that size can be drawn twice alike."""
    return draw(st.sampled_from([4, 6, 8, 12, 24])), draw(st.integers(0, 10_000))


def structure(size: int, chance: random.Random, depth: int = 2) -> Dim:
    kind = chance.choice(["atom", "product", "sum"]) if depth and size > 1 else "atom"
    if kind == "product":
        outer = chance.choice([d for d in range(1, size + 1) if size % d == 0])
        return product([structure(outer, chance, depth - 1), structure(size // outer, chance, depth - 1)])
    if kind == "sum":
        first = chance.randint(1, size - 1)
        return total([structure(first, chance, depth - 1), structure(size - first, chance, depth - 1)])
    return atom(size)


def two(case: tuple[int, int]) -> tuple[Dim, Dim]:
    chance = random.Random(case[1])
    return structure(case[0], chance), structure(case[0], chance)


Footprint = frozenset[frozenset[tuple[int, int]]]


def footprints(dims: Sequence[Dim]) -> Footprint:
    """What dims mean: for each unit that can go, the (dim, position) pairs that go with it."""
    free = {leaf for dim in dims for leaf in leaves(dim) if not is_pinned(leaf) and leaf.size > 1}
    return frozenset(footprint(dims, leaf, unit) for leaf in free for unit in range(leaf.size))


def footprint(dims: Sequence[Dim], leaf: Dim, unit: int) -> frozenset[tuple[int, int]]:
    kept = torch.arange(leaf.size) != unit
    gone = [(i, (~keep_mask(dim, {leaf: kept})).nonzero().flatten().tolist()) for i, dim in enumerate(dims)]
    return frozenset((i, position) for i, positions in gone for position in positions)


@quick
@given(case=pairs())
def test_unify_is_symmetric(case: tuple[int, int]) -> None:
    a, b = two(case)
    c, d = two(case)
    unify(a, b, "n")
    unify(d, c, "n")
    assert footprints([a, b]) == footprints([c, d])


@quick
@given(case=pairs())
def test_unify_twice_is_unify_once(case: tuple[int, int]) -> None:
    a, b = two(case)
    unify(a, b, "n")
    once = footprints([a, b])
    unify(a, b, "n")
    unify(b, a, "n")
    assert footprints([a, b]) == once


@quick
@given(case=pairs())
def test_unified_dims_keep_the_same_positions(case: tuple[int, int]) -> None:
    a, b = two(case)
    unify(a, b, "n")
    kept = random_masks([a, b], case[1])
    assert torch.equal(keep_mask(a, kept), keep_mask(b, kept))


@quick
@given(case=pairs())
def test_unify_preserves_sizes(case: tuple[int, int]) -> None:
    a, b = two(case)
    unify(a, b, "n")
    assert consistent(a)
    assert consistent(b)
    assert a.size == b.size == case[0]


@quick
@given(size=st.sampled_from([8, 16, 24]), seed=st.integers(0, 10_000), shuffle=st.integers(0, 99))
def test_the_order_of_constraints_does_not_matter(size: int, seed: int, shuffle: int) -> None:
    assert solved(size, seed, None) == solved(size, seed, shuffle)


def solved(size: int, seed: int, shuffle: int | None) -> Footprint:
    """Four dims and five random constraints between them, applied in some order."""
    chance = random.Random(seed)
    dims = [blocks(size, chance) for _ in range(4)]
    constraints = [chance.sample(range(4), 2) for _ in range(5)]
    if shuffle is not None:
        random.Random(shuffle).shuffle(constraints)
    for one, other in constraints:
        unify(dims[one], dims[other], "n")
    return footprints(dims)


def blocks(size: int, chance: random.Random) -> Dim:
    """A structure as models have it: sums are cut between blocks, not inside (there the order makes some pins more)."""
    kind = chance.choice(["atom", "product", "sum"])
    if kind == "product":
        inner = chance.choice([2, 4])
        return product([atom(size // inner), atom(inner)])
    if kind == "sum":
        first = 4 * chance.randint(1, size // 4 - 1)
        return total([atom(first), atom(size - first)])
    return atom(size)


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
        ("4*6", "6*4", ["(a0:4! x a1:6!)", "(a2:6! x a3:4!)"]),
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


def test_what_does_not_fit_says_so() -> None:
    for left, right, why in (
        ("4*6", "6*4", "can't align 4 x 6 with 6 x 4"),
        ("9*2", "3+15", "can't align 9 x 2 with 3 x 15"),
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


@pytest.mark.parametrize("sizes", list(itertools.permutations([2, 3, 4])))
def test_factors_and_segments_are_flat(sizes: tuple[int, ...]) -> None:
    parts = [atom(size) for size in sizes]
    assert factors(product([product(parts[:2]), parts[2], atom(1)])) == parts
    assert segments(total([total(parts[:2]), atom(0), parts[2]])) == parts
