"""The algebra of dimensions: a tensor's dimension is an atom, a mirrored atom, a product or sum of dims, or one in another order.

    Atom(n)            n independent indices
    Product(d1 … dk)   row-major merge, index = i1·n2·…·nk + … + ik     (view, flatten, grouped convolution)
    Sum(d1 … dk)       ordered concatenation                            (cat, split, slice)
    Mirror(a)          the indices of an atom in reverse                (flip)
    Order(d, p)        the indices of a dim in another order, p[i] at i (index_select by a constant)

`fxprune.dims.unify` makes two dims the same dim, refining atoms where sizes allow it; dims that can't be aligned exactly are pinned:
they stay whole. Dims are union-find nodes: `find` gives the representative, and only atoms are ever merged or refined; a mirror follows
its atom: that of a product or a sum is the product of its mirrored factors, or the sum of its mirrored parts from the last to the first.
Dims of size 1 never unify (they broadcast); a product drops them, a sum keeps them as rigid parts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pin:
    """The reason why a dim stays whole, and the name of the node that requires it."""

    why: str
    node: str


class Dim:
    """One dimension of one or many tensors; equal objects after `find` are the same dimension."""

    __slots__ = ("_pin", "_to", "kind", "order", "parts", "serial", "size")
    _serials = itertools.count()

    def __init__(
        self, size: int, kind: str = "atom", parts: tuple[Dim, ...] = (), order: tuple[int, ...] = ()
    ) -> None:
        self.size = size
        self.kind = kind
        self.parts = parts
        self.order = order
        self.serial = next(Dim._serials)
        self._to: Dim | None = None
        self._pin: Pin | None = None

    def __repr__(self) -> str:
        return dim_text(self)


def atom(size: int) -> Dim:
    """A new dimension of `size` independent indices; ValueError for a size below 0 (which stand-ins for unknown sizes may lead to)."""
    if size < 0:
        raise ValueError(f"a dimension can't have {size} indices")
    return Dim(size)


def find(dim: Dim) -> Dim:
    """The representative of a dim; a mirror whose atom was refined becomes a structure of mirrored atoms, and orders of orders one."""
    root = dim
    while root._to is not None or (root.kind in ("mirror", "order") and root.parts[0]._to is not None):
        root._to = root._to or (reordered(root.parts[0], root.order) if root.order else mirror(root.parts[0]))
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


def mirror(dim: Dim) -> Dim:
    """The indices of a dim in reverse order."""
    dim = find(dim)
    if dim.size < 2 or dim.kind == "mirror":
        return dim if dim.size < 2 else dim.parts[0]
    if dim.kind == "order":
        return reordered(dim.parts[0], dim.order[::-1])
    if dim.kind == "product":
        return product(mirror(part) for part in dim.parts)
    return (
        total(mirror(part) for part in reversed(dim.parts))
        if dim.kind == "sum"
        else Dim(dim.size, "mirror", (dim,))
    )


def reordered(dim: Dim, order: tuple[int, ...]) -> Dim:
    """The indices of a dim in another order, in which index `order[i]` is at position i."""
    dim, places = find(dim), tuple(range(dim.size))
    if dim.kind == "order":
        return reordered(dim.parts[0], tuple(dim.order[i] for i in order))
    if dim.kind == "mirror":
        return reordered(dim.parts[0], tuple(dim.size - 1 - i for i in order))
    if order in (places, places[::-1]):
        return dim if order == places else mirror(dim)
    return Dim(dim.size, "order", (dim,), order)


def leaves(dim: Dim) -> Iterator[Dim]:
    """The atoms of a dim in order, with repetitions."""
    dim = find(dim)
    if dim.kind == "atom":
        yield dim
        return
    for part in dim.parts:
        yield from leaves(part)


def pinned(dim: Dim) -> Pin | None:
    """The pin of a dim that is pinned as a whole, or None where a part of it is free (a size of 1 counts as pinned)."""
    pin = None
    for leaf in leaves(dim):
        if leaf._pin is None and leaf.size > 1:
            return None
        pin = pin or leaf._pin
    return pin or Pin("a size of 1 has nothing to remove", "")


def pin(dim: Dim, why: str, node: str) -> None:
    """Pin all atoms of a dim; an atom that is pinned already keeps its first reason."""
    for leaf in leaves(dim):
        if leaf._pin is None:
            leaf._pin = Pin(why, node)


def is_pinned(leaf: Dim) -> bool:
    """Whether an atom is pinned."""
    return find(leaf)._pin is not None


def dim_text(dim: Dim, labels: Mapping[Dim, str] | None = None) -> str:
    """A dim in notation: `(heads:4 x (qk:8 + qk:8))`; an atom by its label, else by its size, with `!` where it is pinned."""
    dim = find(dim)
    if dim.kind == "atom":
        bang = "!" if dim._pin is not None else ""
        return (labels or {}).get(dim) or f"{bang}{dim.size}"
    if dim.kind == "mirror":
        return f"reversed {dim_text(dim.parts[0], labels)}"
    if dim.kind == "order":
        return f"reordered {dim_text(dim.parts[0], labels)}"
    joint = " x " if dim.kind == "product" else " + "
    return "(" + joint.join(dim_text(part, labels) for part in dim.parts) + ")"
