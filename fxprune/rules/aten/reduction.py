"""Reductions: a sum is a contraction (exact), a mean or a maximum is not, and operators that depend on order or position pin."""

from __future__ import annotations

import torch

from fxprune.dims import Dim, atom
from fxprune.rules.aten.pointwise import pointwise
from fxprune.rules.facts import Shape
from fxprune.rules.notation import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.routing import candidates
from fxprune.rules.traits import packet_of

aten = torch.ops.aten


def reduced(op: Op) -> tuple[Shape, Shape]:
    """Return (the dims that are reduced, the dims of the result)."""
    name = "self" if "self" in op.arguments else "input"
    shape = op.dims(name)
    given = op.integers("dim") if "dim" in op.arguments else op.integers("axis")
    places = {i % max(1, len(shape)) for i in given} or set(range(len(shape)))
    gone = tuple(shape[i] for i in sorted(places) if shape)
    if op["keepdim"]:
        return gone, tuple(atom(1) if i in places else dim for i, dim in enumerate(shape))
    return gone, tuple(dim for i, dim in enumerate(shape) if i not in places)


@rule(aten.sum, aten.nansum, zero="keep")
def sum_(op: Op) -> Shape:
    """Contract the reduced dims, with one operand."""
    gone, result = reduced(op)
    for dim in gone:
        op.contract(dim, "self")
    return result


@rule(aten.amax, aten.amin, zero="keep")
@rule(
    aten.mean, aten.var, aten.std, aten.nanmean, aten.prod, aten.logsumexp, aten.any, aten.all, zero="lose",
)  # fmt: skip
def mean(op: Op) -> Shape:
    """Mark the reduced dims as inexact: a statistic over them changes with their members; a maximum, with those that are zero, too."""
    gone, result = reduced(op)
    _statistic(op, gone)
    return result


def _statistic(op: Op, gone: tuple[Dim, ...]) -> None:
    op.inexact(gone, f"{op.node.target} over it at {op.node.name}: the statistic changes")
    op.role(gone, "norm")


@rule(aten.mse_loss, aten.l1_loss, aten.smooth_l1_loss, aten.huber_loss, zero="lose")
def _loss(op: Op) -> Shape:
    """Broadcast the operands; unless `reduction` is 0 (none), mark all dims as inexact: a statistic is computed over them."""
    shapes = [op.dims("self"), op.dims("target")]
    sizes = torch.broadcast_shapes(*(tuple(dim.size for dim in shape) for shape in shapes))
    result = broadcast(op, shapes, tuple(sizes))
    if op.integer("reduction") == 0:
        return result
    _statistic(op, result)
    return ()


@rule(aten.max, aten.min, aten.var_mean, aten.std_mean, aten.median, aten.mode, aten.aminmax, zero="lose")
def _pair(op: Op) -> Shape | tuple[Shape, ...]:
    """Reduce a dim to values and positions, or two statistics; between two tensors max and min are pointwise."""
    if op.has("other"):
        return pointwise(op)
    gone, result = reduced(op)
    positional = op.node.target.overloadpacket not in (aten.var_mean, aten.std_mean)  # type: ignore[union-attr]
    if positional and "dim" in op.arguments and not _chosen(op):
        op.pin(gone, f"{op.node.target} gives positions along it")
    if not positional or "dim" not in op.arguments:
        _statistic(op, gone)
    return (result, result) if isinstance(op.node.meta["val"], (tuple, list)) else result


#: operator: the value that is never chosen
MASKED_VALUES = {
    aten.max: float("-inf"),
    aten.argmax: float("-inf"),
    aten.min: float("inf"),
    aten.argmin: float("inf"),
}


def _chosen(op: Op) -> bool:
    """Record the choice of one among the positions of a dim; return whether the operator is such a choice."""
    found = candidates(op.node)
    loser = MASKED_VALUES.get(packet_of(op.node.target))
    if found is None or loser is None:
        return False
    op.choose(found.place, loser)
    return True


@rule(aten.argmax, aten.argmin, aten.count_nonzero, zero="lose")
def positional(op: Op) -> Shape:
    """Record a choice, or pin the reduced dims: the result is a position or a count."""
    gone, result = reduced(op)
    if not _chosen(op):
        what = "counts" if packet_of(op.node.target) is aten.count_nonzero else "gives positions"
        op.pin(gone, f"{op.node.target} {what} along it")
    return result


@rule(aten.cumsum, zero="value")
def cumulated(op: Op) -> Shape:
    """Contract the dim: removed positions that are zero do not change the sums at later positions."""
    shape = op.dims("self")
    if shape:
        op.contract(shape[op.integer("dim") % len(shape)], "self")
    return shape


@rule(aten.cumprod, aten.logcumsumexp, aten.argsort, zero="lose")
def _ordered(op: Op) -> Shape:
    """Pin the dim, whose order matters."""
    shape = op.dims("self")
    op.pin(shape[op.integer("dim") % max(1, len(shape))], f"{op.node.target} depends on the order")
    return shape


@rule(aten.topk, zero="lose")
def topk(op: Op) -> tuple[Shape, ...]:
    """Record a choice of k among the positions of a dim, which can shrink as long as k remain."""
    found = candidates(op.node)
    if found is None or not isinstance(op["k"], int):
        return ranked(op)
    op.choose(found.place, float("-inf" if op["largest"] else "inf"), op["k"])
    best = _whole(op, op["k"])
    shape = tuple(best if i == found.place else dim for i, dim in enumerate(op.dims("self")))
    return shape, shape


@rule(aten.sort, aten.cummax, aten.cummin, aten.kthvalue, zero="lose")
def ranked(op: Op) -> tuple[Shape, ...]:
    """Pin the dim along which values and positions are returned."""
    shape = list(op.dims("self"))
    place = op.integer("dim") % max(1, len(shape))
    op.pin(shape[place], f"{op.node.target} gives positions along it")
    if op.outs[0] != tuple(dim.size for dim in shape):
        shape = [dim if i != place else atom(0) for i, dim in enumerate(shape)]
        shape = shape if len(shape) == len(op.outs[0]) else shape[:place] + shape[place + 1 :]
    pairs = zip(shape, op.outs[0], strict=True)
    result = tuple(dim if dim.size == size else _whole(op, size) for dim, size in pairs)
    return result, result


def _whole(op: Op, size: int) -> Dim:
    return op.fixed([size], f"{op.node.target} gives it its order")[0]
