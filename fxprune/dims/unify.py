"""Unify dims: make two dims one, splitting atoms where sizes divide, or pin the dims that can't be aligned."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from fxprune.dims.dim import (
    Dim,
    atom,
    dim_text,
    factors,
    find,
    leaves,
    mirror,
    pin,
    pinned,
    product,
    reordered,
    segments,
    total,
)
from fxprune.dims.orders import inverse, transposition

_MOST_BLOCKS = 8
"""The most blocks that are written out one by one where a boundary lies inside of one."""


def _refine(leaf: Dim, into: Dim, node: str = "") -> None:
    """Replace an atom by a structure or by another atom; its pin is passed to their atoms."""
    into = find(into)
    if leaf is into:
        return
    if into.kind == "mirror" and into.parts[0] is leaf:
        into = _palindrome(leaf.size)
    if into.kind == "order" and leaf in leaves(into):
        pin(leaf, "it meets itself in another order", node)
        return
    if leaf._pin is not None:
        pin(into, leaf._pin.why, leaf._pin.node)
    leaf._to = into


def _palindrome(size: int) -> Dim:
    """A dim that is its own mirror."""
    half = atom(size // 2)
    return total([half, atom(size % 2), mirror(half)])


def _conflict(left: Sequence[Dim], right: Sequence[Dim], node: str) -> None:
    why = f"can't align {_chain(left)} with {_chain(right)}"
    for dim in (*left, *right):
        pin(dim, why, node)


def _chain(side: Sequence[Dim]) -> str:
    return " x ".join(dim_text(dim) for dim in side)


def unify(left: Dim, right: Dim, node: str) -> None:
    """Make two dims one; where they can't be aligned exactly, pin all atoms involved.

    Dims stay as they are where one has size 1 (it broadcasts); dims of other unequal sizes are pinned.
    """
    left, right = find(left), find(right)
    if left is right or left.size == 1 or right.size == 1:
        return
    if left.size != right.size:
        _conflict([left], [right], node)
        return
    why = pinned(left) or pinned(right)
    if why is not None:
        pin(left, why.why, why.node)
        pin(right, why.why, why.node)
        if "atom" not in (left.kind, right.kind) or mirror(left) is right or mirror(right) is left:
            return
    if left.kind == "atom":
        _refine(left, right, node)
    elif right.kind == "atom":
        _refine(right, left, node)
    else:
        _unify_structures(left, right, node)


def _unify_structures(left: Dim, right: Dim, node: str) -> None:
    if left.kind == "mirror":
        unify(left.parts[0], mirror(right), node)
    elif right.kind == "mirror":
        unify(right.parts[0], mirror(left), node)
    elif "order" in (left.kind, right.kind):
        _unify_orders(left, right, node)
    elif left.kind == right.kind == "product":
        unify_products(factors(left), factors(right), node)
    elif left.kind == right.kind == "sum":
        _unify_sums(segments(left), segments(right), node)
    else:
        product_side, sum_side = (left, right) if left.kind == "product" else (right, left)
        _unify_product_with_sum(product_side, sum_side, node)


def _unify_orders(left: Dim, right: Dim, node: str) -> None:
    """Unify where one side is in another order: an atom behind it takes the other side's structure in the order that leads back."""
    first, second = (left, right) if left.kind == "order" else (right, left)
    base = find(first.parts[0])
    if first.order == second.order or base.kind == "atom":
        unify(base, reordered(second, inverse(first.order)), node)
    elif second.kind == "order" and find(second.parts[0]).kind == "atom":
        _unify_orders(second, first, node)
    else:
        shown = as_factors(first, node)
        unify(shown, second, node) if shown else _conflict([left], [right], node)


def as_factors(dim: Dim, node: str) -> Dim | None:
    """The product of the factors of a dim in another order, where that order transposes factors; else None."""
    found = transposition(dim.order)
    if found is None:
        return None
    sizes, places = found
    parts = [atom(size) for size in sizes]
    unify(dim.parts[0], product(parts), node)
    return product(parts[place] for place in places)


def unify_products(left: Sequence[Dim], right: Sequence[Dim], node: str) -> None:
    """Unify two factor lists (as a view does), chunk by chunk between the cuts that both share."""
    left = [factor for dim in left for factor in factors(dim)]
    right = [factor for dim in right for factor in factors(dim)]
    while left and right:
        one, other = _shared_chunk(left, right)
        _unify_chunk(left[:one], right[:other], node)
        left, right = left[one:], right[other:]


def _shared_chunk(left: Sequence[Dim], right: Sequence[Dim]) -> tuple[int, int]:
    """The lengths of the shortest prefixes with the same product (the whole lists where there is none)."""
    one, other, left_size, right_size = 1, 1, left[0].size, right[0].size
    while left_size != right_size:
        if left_size < right_size and one < len(left):
            left_size, one = left_size * left[one].size, one + 1
        elif right_size < left_size and other < len(right):
            right_size, other = right_size * right[other].size, other + 1
        else:
            return len(left), len(right)
    return one, other


def _inner_sizes(dims: Sequence[Dim]) -> list[int]:
    """The products of the last 1, 2, … factors."""
    return list(itertools.accumulate((dim.size for dim in reversed(dims)), lambda a, b: a * b))


def _unify_chunk(left: Sequence[Dim], right: Sequence[Dim], node: str) -> None:
    """Unify factor lists of one product: refine both at every cut that each cut of either divides or is divided by.

    What lies between two such cuts becomes one atom, or is pinned where the sides have other cuts there: 4 x 6 and 6 x 4 are
    2 x (!2 x !3) x 2 and 2 x (!3 x !2) x 2.
    """
    if len(left) == 1 and len(right) == 1:
        unify(left[0], right[0], node)
        return
    if len(left) == 1 or len(right) == 1:
        single, several = (left[0], product(right)) if len(left) == 1 else (right[0], product(left))
        unify(single, several, node)
        return
    cuts = [{1, *_inner_sizes(side)} for side in (left, right)]
    common, steps = _common_steps(*cuts)
    if not common:
        _conflict(left, right, node)
        return
    if all(pinned(dim) for dim in (*left, *right)):
        return
    why = f"can't align {_chain(left)} with {_chain(right)}"
    shared = {step: atom(step[1] // step[0]) for step in common}
    for side, own in zip((left, right), cuts, strict=True):
        places = itertools.pairwise(sorted({*own, *itertools.chain(*steps)}))
        parts = [shared.get(step) or _whole(step, why, node) for step in places]
        _refine_factors(side, parts[::-1], node)


def _common_steps(left: set[int], right: set[int]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The steps between cuts that no other cut straddles: those that both lists can take, and all.

    Cuts are inner sizes. The greatest common divisor and the least common multiple of two cuts are cuts, too: blocks of 4 and of 6 both
    consist of blocks of 2, and blocks of 12 of both.
    """
    cuts = left | right
    for one, other in itertools.product(left, right):
        cuts |= {math.gcd(one, other), math.lcm(one, other)}
    kept = sorted(cut for cut in cuts if all(cut % other == 0 or other % cut == 0 for other in cuts))
    steps = list(itertools.pairwise(kept))
    return [(low, high) for low, high in steps if not any(low < cut < high for cut in cuts)], steps


def _whole(step: tuple[int, int], why: str, node: str) -> Dim:
    """A new atom between two cuts that stays whole."""
    dim = atom(step[1] // step[0])
    pin(dim, why, node)
    return dim


def _refine_factors(side: Sequence[Dim], common: Sequence[Dim], node: str) -> None:
    rest = list(common)
    for dim in side:
        taken: list[Dim] = []
        while math.prod(part.size for part in taken) < dim.size:
            taken.append(rest.pop(0))
        unify(dim, product(taken), node)


def _unify_sums(left: Sequence[Dim], right: Sequence[Dim], node: str) -> None:
    """Unify two lists of segments, run by run between the boundaries that both share.

    Where both have several segments in a run, the longer first one is cut at the other's boundary.
    """
    left, right = list(left), list(right)
    while left and right:
        one, other = _shared_run(left, right)
        if one > 1 and other > 1 and _unify_first(left, right, node):
            continue
        if 1 in (one, other):
            unify(total(left[:one]), total(right[:other]), node)
        else:
            _conflict(left[:one], right[:other], node)
        left, right = left[one:], right[other:]


def _unify_first(left: list[Dim], right: list[Dim], node: str) -> bool:
    """Take the shorter first segment off both lists and unify it; False where the longer one can't be cut there."""
    longer, shorter = (left, right) if left[0].size > right[0].size else (right, left)
    cut = split_at(longer[0], shorter[0].size, node)
    if cut is None:
        return False
    unify(cut[0], shorter[0], node)
    longer[:1] = segments(cut[1])
    del shorter[0]
    return True


def _shared_run(left: Sequence[Dim], right: Sequence[Dim]) -> tuple[int, int]:
    """The lengths of the shortest prefixes with the same sum."""
    one, other, left_size, right_size = 1, 1, left[0].size, right[0].size
    while left_size != right_size:
        if left_size < right_size:
            left_size, one = left_size + left[one].size, one + 1
        else:
            right_size, other = right_size + right[other].size, other + 1
    return one, other


def split_at(dim: Dim, place: int, node: str = "") -> tuple[Dim, Dim] | None:
    """The two parts of a dim on either side of `place`, refining atoms; None where the boundary cuts an inner block.

    With a `node` to pin it at, the outer factor of such a block stays whole, and the blocks are cut one by one (up to 8).
    """
    dim = find(dim)
    if dim.kind == "atom":
        parts = atom(place), atom(dim.size - place)
        _refine(dim, Dim(dim.size, "sum", parts))
        return parts
    if dim.kind == "sum":
        return _split_sum(dim, place, node)
    if dim.kind == "mirror":
        ends = split_at(dim.parts[0], dim.size - place, node)
        return ends and (mirror(ends[1]), mirror(ends[0]))
    if dim.kind == "order":
        return _split_order(dim, place, node)
    outer, *inner = dim.parts
    block = dim.size // find(outer).size
    if place % block:
        return _split_repeated(dim, place, node) if node and find(outer).size <= _MOST_BLOCKS else None
    cut = split_at(outer, place // block, node)
    return cut and (product([cut[0], *inner]), product([cut[1], *inner]))


def _split_order(dim: Dim, place: int, node: str) -> tuple[Dim, Dim] | None:
    base = find(dim.parts[0])
    if base.kind != "atom":
        shown = as_factors(dim, node)
        return split_at(shown, place, node) if shown else None
    parts = atom(place), atom(dim.size - place)
    _refine(base, reordered(total(parts), inverse(dim.order)))
    return parts


def _split_repeated(dim: Dim, place: int, node: str) -> tuple[Dim, Dim] | None:
    """Split a product inside of its inner block: the outer factor is pinned, and the block repeated."""
    outer, inner = find(dim.parts[0]), product(dim.parts[1:])
    pin(outer, f"a boundary inside {dim_text(inner)} makes the outer factor rigid", node)
    return split_at(total([inner] * outer.size), place, node)


def _split_sum(dim: Dim, place: int, node: str) -> tuple[Dim, Dim] | None:
    before: list[Dim] = []
    after = segments(dim)
    while after and after[0].size <= place:
        place -= after[0].size
        before.append(after.pop(0))
    if not place:
        return total(before), total(after)
    cut = split_at(after[0], place, node)
    return cut and (total([*before, cut[0]]), total([cut[1], *after[1:]]))


def _unify_product_with_sum(left: Dim, right: Dim, node: str) -> None:
    """Unify Product(k, m) with segments: m is the longest tail that divides runs of segments, k becomes the sum of the quotients."""
    parts, pieces = factors(left), segments(right)
    tails = [parts[i:] for i in range(1, len(parts))]
    found = ((tail, _runs(pieces, product(tail).size)) for tail in tails)
    tail, runs = next(((tail, runs) for tail, runs in found if len(runs) > 1), ([], []))
    if not runs:
        _unify_rigid(parts, pieces, node)
        return
    inner = product(tail)
    quotients = [atom(run.size // inner.size) for run in runs]
    unify(product(parts[: len(parts) - len(tail)]), total(quotients), node)
    for run, quotient in zip(runs, quotients, strict=True):
        unify(run, product([quotient, inner]), node)


def _runs(pieces: list[Dim], block: int) -> list[Dim]:
    """Segments, neighbours joined where only together they are a multiple of a block; empty where the last ones are not."""
    runs: list[Dim] = []
    run: list[Dim] = []
    for piece in pieces:
        run.append(piece)
        if sum(part.size for part in run) % block == 0:
            runs.append(total(run))
            run = []
    return runs if not run else []


def _unify_rigid(parts: list[Dim], pieces: list[Dim], node: str) -> None:
    """Unify where a boundary cuts the inner block: pin the outer factor and repeat the block (more outer blocks than 8 conflict)."""
    outer, inner = parts[0], product(parts[1:])
    if outer.size > _MOST_BLOCKS:
        border = " + ".join(str(piece.size) for piece in pieces)
        for dim in (*parts, *pieces):
            pin(
                dim,
                f"{outer.size} blocks of {inner.size} straddle the borders of a concatenation, {border}",
                node,
            )
        return
    pin(outer, f"a boundary inside {dim_text(inner)} makes the outer factor rigid", node)
    _unify_sums(segments(total([inner] * outer.size)), pieces, node)
