"""Assembly: shorthands of movement that torch.export leaves whole (hstack, meshgrid, kron …), each said with the dims of its parts."""

from __future__ import annotations

import torch

from fxprune.dims import atom, product
from fxprune.rules.aten.movement import join_along
from fxprune.rules.facts import Dims, Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


def at_least(shape: Shape, rank: int) -> Shape:
    """A shape with dims of size 1 as atleast_1d, atleast_2d and atleast_3d put them: in front, for rank 3 the last behind."""
    if rank == 3 and shape:
        return (atom(1), shape[0], atom(1)) if len(shape) == 1 else (*shape, *([atom(1)] * (3 - len(shape))))
    return (*(atom(1) for _ in range(rank - len(shape))), *shape)


def _shapes(op: Op) -> list[Shape]:
    return [op.flow.dims[node] for node in op.tensors()]


_RANKS = {aten.atleast_1d: 1, aten.atleast_2d: 2, aten.atleast_3d: 3}


@rule(*_RANKS, zero="keep")
def atleast(op: Op) -> Dims:
    """Dims of size 1 come in; a list gives a list."""
    rank = _RANKS[op.node.target.overloadpacket]  # type: ignore[union-attr]
    found = tuple(at_least(shape, rank) for shape in _shapes(op))
    return found if isinstance(op.node.meta["val"], (tuple, list)) else found[0]


@rule(aten.ravel, zero="keep")
def ravel(op: Op) -> Shape:
    """All dims become their product."""
    return (product(op.dims("self")),) if op.dims("self") else (atom(1),)


@rule(aten.hstack, aten.column_stack, zero="keep")
def hstack(op: Op) -> Shape:
    """Along dim 1; vectors are joined (hstack), or become columns (column_stack)."""
    if op.node.target.overloadpacket is aten.hstack:  # type: ignore[union-attr]
        shapes = [at_least(shape, 1) for shape in _shapes(op)]
        return join_along(op, shapes, 0 if len(shapes[0]) == 1 else 1)
    columns = [(*at_least(s, 1), atom(1)) if len(s) < 2 else s for s in _shapes(op)]
    return join_along(op, columns, 1)


@rule(aten.vstack, aten.row_stack, zero="keep")
def vstack(op: Op) -> Shape:
    """Along dim 0; vectors become rows."""
    return join_along(op, [at_least(shape, 2) for shape in _shapes(op)], 0)


@rule(aten.dstack, zero="keep")
def dstack(op: Op) -> Shape:
    """Along dim 2, with dims of size 1 where there are fewer."""
    return join_along(op, [at_least(shape, 3) for shape in _shapes(op)], 2)


@rule(aten.hsplit, aten.vsplit, aten.dsplit, zero="keep")
def parted(op: Op) -> tuple[Shape, ...]:
    """The dim is cut at numbers that would have to move with it: it stays whole."""
    shape = op.dims("self")
    places = {aten.vsplit: 0, aten.hsplit: min(1, len(shape) - 1), aten.dsplit: 2}
    place = places[op.node.target.overloadpacket]  # type: ignore[union-attr]
    parts = [atom(out[place]) for out in op.outs]
    op.pin((shape[place], *parts), f"{op.node.target} cuts it by numbers")
    return tuple((*shape[:place], part, *shape[place + 1 :]) for part in parts)


@rule(aten.meshgrid, zero="lose")
def meshgrid(op: Op) -> tuple[Shape, ...]:
    """One dim a vector, in their order (the first two the other way round for `xy`); all results have all of them."""
    dims = [(*shape, atom(1))[0] for shape in _shapes(op)]
    if op["indexing"] == "xy":
        dims[:2] = reversed(dims[:2])
    return tuple(tuple(dims) for _ in dims)


@rule(aten.kron, zero="times")
def kron(op: Op) -> Shape:
    """Each dim is the product of the operands' own."""
    rank = len(op.out)
    one, other = (at_least(op.dims(name), rank) for name in ("self", "other"))
    return tuple(product(pair) for pair in zip(one, other, strict=True))


@rule(aten.narrow_copy, zero="keep")
def narrowed(op: Op) -> Shape:
    """A part of a dim is read by position."""
    shape = op.dims("self")
    place = op.integer("dim") % len(shape)
    part = atom(op.out[place])
    op.pin((shape[place], part), f"{op.node.target} cuts it by numbers")
    return (*shape[:place], part, *shape[place + 1 :])
