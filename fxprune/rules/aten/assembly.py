"""Assembly operators: shorthands of movement operators that torch.export does not decompose (hstack, meshgrid, kron …)."""

from __future__ import annotations

import torch

from fxprune.dims import atom, product
from fxprune.rules.aten.movement import join_along
from fxprune.rules.facts import Dims, Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


def at_least(shape: Shape, rank: int) -> Shape:
    """Add dims of size 1 to a shape as atleast_1d, atleast_2d and atleast_3d do: in front, for rank 3 the last one behind."""
    if rank == 3 and shape:
        return (atom(1), shape[0], atom(1)) if len(shape) == 1 else (*shape, *([atom(1)] * (3 - len(shape))))
    return (*(atom(1) for _ in range(rank - len(shape))), *shape)


def _shapes(op: Op) -> list[Shape]:
    return [op.flow.dims[node] for node in op.tensors()]


_RANKS = {aten.atleast_1d: 1, aten.atleast_2d: 2, aten.atleast_3d: 3}


@rule(*_RANKS, zero="keep")
def atleast(op: Op) -> Dims:
    """Add dims of size 1; a list of operands gives a list of results."""
    rank = _RANKS[op.node.target.overloadpacket]  # type: ignore[union-attr]
    found = tuple(at_least(shape, rank) for shape in _shapes(op))
    return found if isinstance(op.node.meta["val"], (tuple, list)) else found[0]


@rule(aten.ravel, zero="keep")
def ravel(op: Op) -> Shape:
    """Merge all dims into their product."""
    return (product(op.dims("self")),) if op.dims("self") else (atom(1),)


@rule(aten.hstack, aten.column_stack, zero="keep")
def hstack(op: Op) -> Shape:
    """Concatenate along dim 1; vectors are concatenated along dim 0 (hstack), or become columns (column_stack)."""
    if op.node.target.overloadpacket is aten.hstack:  # type: ignore[union-attr]
        shapes = [at_least(shape, 1) for shape in _shapes(op)]
        return join_along(op, shapes, 0 if len(shapes[0]) == 1 else 1)
    columns = [(*at_least(s, 1), atom(1)) if len(s) < 2 else s for s in _shapes(op)]
    return join_along(op, columns, 1)


@rule(aten.vstack, aten.row_stack, zero="keep")
def vstack(op: Op) -> Shape:
    """Concatenate along dim 0; vectors become rows."""
    return join_along(op, [at_least(shape, 2) for shape in _shapes(op)], 0)


@rule(aten.dstack, zero="keep")
def dstack(op: Op) -> Shape:
    """Concatenate along dim 2; dims of size 1 are added where there are fewer."""
    return join_along(op, [at_least(shape, 3) for shape in _shapes(op)], 2)


@rule(aten.hsplit, aten.vsplit, aten.dsplit, zero="keep")
def hsplit(op: Op) -> tuple[Shape, ...]:
    """Pin the dim that is split: the places of the cuts are numbers that would have to change with it."""
    shape = op.dims("self")
    places = {aten.vsplit: 0, aten.hsplit: min(1, len(shape) - 1), aten.dsplit: 2}
    place = places[op.node.target.overloadpacket]  # type: ignore[union-attr]
    parts = [atom(out[place]) for out in op.outs]
    op.pin((shape[place], *parts), f"{op.node.target} cuts it by numbers")
    return tuple((*shape[:place], part, *shape[place + 1 :]) for part in parts)


@rule(aten.meshgrid, zero="lose")
def meshgrid(op: Op) -> tuple[Shape, ...]:
    """Give every result the dims of all vectors, in their order (the first two swapped for `xy`)."""
    dims = [(*shape, atom(1))[0] for shape in _shapes(op)]
    if op["indexing"] == "xy":
        dims[:2] = reversed(dims[:2])
    return tuple(tuple(dims) for _ in dims)


@rule(aten.kron, zero="times")
def kron(op: Op) -> Shape:
    """Merge the operands' dims, pair by pair, into products."""
    rank = len(op.out)
    one, other = (at_least(op.dims(name), rank) for name in ("self", "other"))
    return tuple(product(pair) for pair in zip(one, other, strict=True))


@rule(aten.narrow_copy, zero="keep")
def narrow_copy(op: Op) -> Shape:
    """Pin the dim that is cut: a part of it is read by position."""
    shape = op.dims("self")
    place = op.integer("dim") % len(shape)
    part = atom(op.out[place])
    op.pin((shape[place], part), f"{op.node.target} cuts it by numbers")
    return (*shape[:place], part, *shape[place + 1 :])
