"""The algebra of dimensions: a tensor's dimension is an atom, a product of dims or a sum of dims.

    Atom(n)            n independent indices
    Product(d1 … dk)   row-major merge, index = i1·n2·…·nk + … + ik     (view, flatten, grouped convolution)
    Sum(d1 … dk)       ordered concatenation                            (cat, split, slice)

`unify` makes two dims the same dim, refining atoms where sizes allow it; what can't be aligned exactly is pinned, which means
that it stays whole. Dims are union-find nodes: `find` gives the representative, and only atoms are ever merged or refined.
Dims of size 1 never unify (they broadcast); a product drops them, a sum keeps them as rigid parts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pin:
    """Why a dim stays whole, and the name of the node that says so."""

    why: str
    node: str


class Dim:
    """One dimension of one or many tensors; equal objects after `find` are the same dimension."""

    __slots__ = ("_pin", "_to", "kind", "parts", "serial", "size")
    _serials = itertools.count()

    def __init__(self, size: int, kind: str = "atom", parts: tuple[Dim, ...] = ()) -> None:
        self.size = size
        self.kind = kind
        self.parts = parts
        self.serial = next(Dim._serials)
        self._to: Dim | None = None
        self._pin: Pin | None = None

    def __repr__(self) -> str:
        return text(self)


def atom(size: int) -> Dim:
    """A new dimension of `size` independent indices; ValueError for a size below 0 (stand-ins of unknown sizes may not fit)."""
    if size < 0:
        raise ValueError(f"a dimension can't have {size} indices")
    return Dim(size)


def find(dim: Dim) -> Dim:
    """The representative of a dim."""
    root = dim
    while root._to is not None:
        root = root._to
    while dim._to is not None:
        dim._to, dim = root, dim._to
    return root


def factors(dim: Dim) -> list[Dim]:
    """The factors of a dim, outermost first, without those of size 1."""
    dim = find(dim)
    if dim.size == 1:
        return []
    if dim.kind != "product":
        return [dim]
    return [factor for part in dim.parts for factor in factors(part)]


def segments(dim: Dim) -> list[Dim]:
    """The parts of a sum in order, without those of size 0."""
    dim = find(dim)
    if dim.size == 0:
        return []
    if dim.kind != "sum":
        return [dim]
    return [segment for part in dim.parts for segment in segments(part)]


def product(dims: Iterable[Dim]) -> Dim:
    """The row-major merge of dims."""
    parts = [factor for dim in dims for factor in factors(dim)]
    if len(parts) == 1:
        return parts[0]
    return Dim(math.prod(part.size for part in parts), "product", tuple(parts)) if parts else Dim(1)


def total(dims: Iterable[Dim]) -> Dim:
    """The concatenation of dims."""
    parts = [segment for dim in dims for segment in segments(dim)]
    if len(parts) == 1:
        return parts[0]
    return Dim(sum(part.size for part in parts), "sum", tuple(parts)) if parts else Dim(0)


def leaves(dim: Dim) -> Iterator[Dim]:
    """The atoms of a dim in order, with repetitions."""
    dim = find(dim)
    if dim.kind == "atom":
        yield dim
        return
    for part in dim.parts:
        yield from leaves(part)


def pinned(dim: Dim) -> Pin | None:
    """Why the whole dim is pinned, or None where a part of it is free (a size of 1 counts as pinned)."""
    pin = None
    for leaf in leaves(dim):
        if leaf._pin is None and leaf.size > 1:
            return None
        pin = pin or leaf._pin
    return pin or Pin("a size of 1 has nothing to remove", "")


def pin(dim: Dim, why: str, node: str) -> None:
    """Keep a dim whole; the first reason stays."""
    for leaf in leaves(dim):
        if leaf._pin is None:
            leaf._pin = Pin(why, node)


def is_pinned(leaf: Dim) -> bool:
    """Whether an atom stays whole."""
    return find(leaf)._pin is not None


def _refine(leaf: Dim, into: Dim) -> None:
    """Give an atom a structure, or another atom's identity; its pin goes to the leaves."""
    into = find(into)
    if leaf is into:
        return
    if leaf._pin is not None:
        pin(into, leaf._pin.why, leaf._pin.node)
    leaf._to = into


def _conflict(left: Sequence[Dim], right: Sequence[Dim], node: str) -> None:
    first, second = (" x ".join(text(dim) for dim in side) for side in (left, right))
    for dim in (*left, *right):
        pin(dim, f"can't align {first} with {second}", node)


def unify(left: Dim, right: Dim, node: str) -> None:
    """Make two dims one; where they can't be aligned exactly, pin all atoms involved.

    Sizes must be equal unless one is 1, which leaves both as they are; other sizes are pinned.
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
        if left.kind != "atom" and right.kind != "atom":
            return
    if left.kind == "atom":
        _refine(left, right)
    elif right.kind == "atom":
        _refine(right, left)
    elif left.kind == right.kind == "product":
        unify_products(factors(left), factors(right), node)
    elif left.kind == right.kind == "sum":
        _unify_sums(segments(left), segments(right), node)
    else:
        product_side, sum_side = (left, right) if left.kind == "product" else (right, left)
        _unify_product_with_sum(product_side, sum_side, node)


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
    """Unify factor lists of one product: refine both at every cut of either, if each cut divides the next."""
    if len(left) == 1 and len(right) == 1:
        unify(left[0], right[0], node)
        return
    if len(left) == 1 or len(right) == 1:
        single, several = (left[0], product(right)) if len(left) == 1 else (right[0], product(left))
        unify(single, several, node)
        return
    cuts = sorted({*_inner_sizes(left), *_inner_sizes(right)})
    if any(big % small for small, big in itertools.pairwise(cuts)):
        _conflict(left, right, node)
        return
    if all(pinned(dim) for dim in (*left, *right)):
        return
    common = [atom(big // small) for small, big in itertools.pairwise([1, *cuts])][::-1]
    for side in (left, right):
        _refine_factors(side, common, node)


def _refine_factors(side: Sequence[Dim], common: Sequence[Dim], node: str) -> None:
    rest = list(common)
    for dim in side:
        taken: list[Dim] = []
        while math.prod(part.size for part in taken) < dim.size:
            taken.append(rest.pop(0))
        unify(dim, product(taken), node)


def _unify_sums(left: Sequence[Dim], right: Sequence[Dim], node: str) -> None:
    """Unify two lists of segments, run by run between the boundaries that both share."""
    left, right = list(left), list(right)
    while left and right:
        one, other = _shared_run(left, right)
        _unify_run(left[:one], right[:other], node)
        left, right = left[one:], right[other:]


def _shared_run(left: Sequence[Dim], right: Sequence[Dim]) -> tuple[int, int]:
    """The lengths of the shortest prefixes with the same sum."""
    one, other, left_size, right_size = 1, 1, left[0].size, right[0].size
    while left_size != right_size:
        if left_size < right_size:
            left_size, one = left_size + left[one].size, one + 1
        else:
            right_size, other = right_size + right[other].size, other + 1
    return one, other


def _unify_run(left: list[Dim], right: list[Dim], node: str) -> None:
    """Unify runs of one size; where both have several segments, the longer first one is cut at the other's boundary."""
    if len(left) == 1 or len(right) == 1:
        unify(total(left), total(right), node)
        return
    longer, shorter = (left, right) if left[0].size > right[0].size else (right, left)
    cut = split_at(longer[0], shorter[0].size)
    if cut is None:
        _conflict(left, right, node)
        return
    unify(cut[0], shorter[0], node)
    _unify_sums([*segments(cut[1]), *longer[1:]], shorter[1:], node)


def split_at(dim: Dim, place: int) -> tuple[Dim, Dim] | None:
    """The two parts of a dim on either side of `place`, refining atoms; None where the boundary cuts an inner block."""
    dim = find(dim)
    if dim.kind == "atom":
        parts = atom(place), atom(dim.size - place)
        _refine(dim, Dim(dim.size, "sum", parts))
        return parts
    if dim.kind == "sum":
        return _split_sum(dim, place)
    outer, *inner = dim.parts
    block = dim.size // find(outer).size
    cut = split_at(outer, place // block) if place % block == 0 else None
    return cut and (product([cut[0], *inner]), product([cut[1], *inner]))


def _split_sum(dim: Dim, place: int) -> tuple[Dim, Dim] | None:
    before: list[Dim] = []
    after = segments(dim)
    while after and after[0].size <= place:
        place -= after[0].size
        before.append(after.pop(0))
    if not place:
        return total(before), total(after)
    cut = split_at(after[0], place)
    return cut and (total([*before, cut[0]]), total([cut[1], *after[1:]]))


def _unify_product_with_sum(left: Dim, right: Dim, node: str) -> None:
    """Product(k, m) against segments: the longest tail m that divides runs of segments stays; k is the sum of the quotients."""
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
    """Segments, neighbours joined where only together they are a multiple of a block; empty where that fails."""
    runs: list[Dim] = []
    run: list[Dim] = []
    for piece in pieces:
        run.append(piece)
        if sum(part.size for part in run) % block == 0:
            runs.append(total(run))
            run = []
    return runs if not run else []


def _unify_rigid(parts: list[Dim], pieces: list[Dim], node: str) -> None:
    """A boundary cuts the inner block: the outer factor is rigid, and the block is repeated (for small ones only)."""
    outer, inner = parts[0], product(parts[1:])
    if outer.size > 8:
        _conflict(parts, pieces, node)
        return
    pin(outer, f"a boundary inside {text(inner)} makes the outer factor rigid", node)
    _unify_sums(segments(total([inner] * outer.size)), pieces, node)


def text(dim: Dim, names: dict[Dim, str] | None = None) -> str:
    """A dim in notation: `(heads:4 x (qk:8+qk:8))`, `!` where pinned."""
    dim = find(dim)
    if dim.kind == "atom":
        name = (names or {}).get(dim)
        bang = "!" if dim._pin is not None else ""
        return f"{bang}{name}:{dim.size}" if name else f"{bang}{dim.size}"
    joint = " x " if dim.kind == "product" else " + "
    return "(" + joint.join(text(part, names) for part in dim.parts) + ")"
