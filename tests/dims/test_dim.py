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
from fxprune.dims.dim import factors, segments, total
from fxprune.dims.masks import keep_mask
from fxprune.dims.unify import unify, unify_products

Value = tuple[Tensor, tuple[Dim, ...]]
quick = settings(max_examples=80, deadline=None)


def shape_of(dims: Sequence[Dim]) -> list[int]:
    return [dim.size for dim in dims]


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


@pytest.mark.parametrize("sizes", list(itertools.permutations([2, 3, 4])))
def test_factors_and_segments_are_flat(sizes: tuple[int, ...]) -> None:
    parts = [atom(size) for size in sizes]
    assert factors(product([product(parts[:2]), parts[2], atom(1)])) == parts
    assert segments(total([total(parts[:2]), atom(0), parts[2]])) == parts
