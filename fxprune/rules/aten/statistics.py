"""Statistics and searches: losses, distances and quantiles are inexact over their dims; dims that are searched are pinned."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxprune.dims import Dim, atom
from fxprune.rules.aten.reduction import reduced
from fxprune.rules.facts import Shape
from fxprune.rules.notation import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.traits import packet_of

aten = torch.ops.aten


def statistic(op: Op, gone: Iterable[Dim]) -> None:
    """Mark dims as inexact: a statistic over them changes with their members."""
    op.inexact(gone, f"{op.node.target} over it at {op.node.name}: the statistic changes")


def together(op: Op, names: tuple[str, ...]) -> Shape:
    """Broadcast the operands of these names, and return the dims."""
    shapes = [op.dims(name) for name in names if op.has(name)]
    sizes = torch.broadcast_shapes(*(tuple(dim.size for dim in shape) for shape in shapes))
    return broadcast(op, shapes, tuple(sizes))


@rule(
    aten.binary_cross_entropy, aten.binary_cross_entropy_with_logits, aten.kl_div, aten.soft_margin_loss, aten.hinge_embedding_loss,
    aten.margin_ranking_loss, aten.poisson_nll_loss, zero="lose",
)  # fmt: skip
def _loss(op: Op) -> Shape:
    """Broadcast the operands; unless `reduction` is 0 (none), mark all dims as inexact: a statistic is computed over them."""
    names = tuple(name for name in op.arguments if op.has(name))
    result = together(op, names)
    if op.integer("reduction") == 0:
        return result
    statistic(op, result)
    return ()


@rule(aten.cross_entropy_loss, aten.nll_loss_nd, aten.nll_loss, aten.nll_loss2d, zero="lose")
def softmax_cross_entropy(op: Op) -> Shape:
    """Pin the classes, which are named by value; unify the other dims with the target's."""
    shape, target = op.dims("self"), op.dims("target")
    place = min(1, len(shape) - 1)
    why = "softmax over it" if len(target) == len(shape) else "classes are named by value"
    op.pin(shape[place], why)
    if op.has("weight"):
        op.pin(op.dims("weight"), why)
    rest = shape[:place] + shape[place + 1 :]
    marks = target if len(target) < len(shape) else target[:place] + target[place + 1 :]
    if len(target) == len(shape):
        op.pin(target[place], why)
    shared = op.unify_all(rest, marks)
    if op.integer("reduction") == 0:
        return shared
    statistic(op, shared)
    return ()


@rule(aten.cosine_similarity, zero="lose")
def cosine_similarity(op: Op) -> Shape:
    """Contract the dim along which two operands are compared: the product and both lengths are sums over it."""
    shape = together(op, ("x1", "x2"))
    place = op.integer("dim") % len(shape)
    op.contract(shape[place], "x1")
    op.contract(shape[place], "x2")
    between = (atom(1),) if op["keepdim"] else ()
    return (*shape[:place], *between, *shape[place + 1 :])


@rule(aten.pairwise_distance, zero="lose")
def pairwise_distance(op: Op) -> Shape:
    """Mark the last dim as inexact: a small number is added to each difference, so that each place adds to the distance."""
    shape = together(op, ("x1", "x2"))
    statistic(op, shape[-1:])
    return (*shape[:-1], *((atom(1),) if op["keepdim"] else ()))


@rule(aten.dist, zero="lose")
def dist(op: Op) -> Shape:
    """Contract all dims: the result is a norm of the difference."""
    for dim in together(op, ("self", "other")):
        _summed(op, dim, "self", "other")
    return ()


@rule(aten.norm, aten.linalg_vector_norm, aten.linalg_norm, aten.frobenius_norm, zero="keep")
@rule(aten.linalg_matrix_norm, aten.nuclear_norm, zero="lose")
def norm(op: Op) -> Shape:
    """Contract the dims of a vector norm, and mark those of a matrix norm as inexact."""
    gone, result = reduced(op)
    for dim in gone:
        _summed(op, dim, "self") if _is_of_vectors(op, gone) else statistic(op, [dim])
    op.role(gone, "norm")
    return result


def _summed(op: Op, dim: Dim, *operands: str) -> None:
    """Contract a dim that a norm of each operand runs over, if a zero adds nothing to it: a sum of powers, or the largest; else inexact."""
    order = next((op[name] for name in ("ord", "p") if name in op.arguments), None)
    if isinstance(order, (int, float)) and order < 0:
        statistic(op, [dim])
        return
    for operand in operands:
        op.contract(dim, operand)


def _is_of_vectors(op: Op, gone: tuple[Dim, ...]) -> bool:
    """Return whether a norm is computed of elements (the Frobenius norm, too), not of a matrix."""
    packet, order = packet_of(op.node.target), op["ord"]
    by_elements = order == "fro" if isinstance(order, str) else order is None
    if packet in (aten.linalg_matrix_norm, aten.nuclear_norm):
        return by_elements and order is not None
    return packet is not aten.linalg_norm or len(gone) == 1 or by_elements


@rule(aten.quantile, aten.nanquantile, zero="lose")
def quantile(op: Op) -> Shape:
    """Mark one dim (or all) as inexact; several quantiles become a leading dim."""
    shape = op.dims("self")
    places = range(len(shape)) if op["dim"] is None else [op.integer("dim") % max(1, len(shape))]
    statistic(op, [shape[i] for i in places if shape])
    between = (atom(1),) if op["keepdim"] else ()
    rest = [d for i, dim in enumerate(shape) for d in (between if i in places else (dim,))]
    front = op.dims("q") if op.has("q") else ()
    return (*front, *rest)


@rule(aten.nanmedian, zero="lose")
def nanmedian(op: Op) -> Shape | tuple[Shape, ...]:
    """Mark all dims as inexact, or pin the reduced dim, along which positions are returned."""
    if "dim" not in op.arguments:
        statistic(op, op.dims("self"))
        return ()
    gone, result = reduced(op)
    op.pin(gone, f"{op.node.target} gives positions along it")
    return result, result


@rule(aten.msort, zero="lose")
def msort(op: Op) -> Shape:
    """Pin dim 0, which is sorted."""
    shape = op.dims("self")
    op.pin(shape[:1], f"{op.node.target} depends on the order")
    return shape


@rule(aten.diff, zero="lose")
def diff(op: Op) -> Shape:
    """Pin the dim along which neighbours are subtracted; unify the others with those of `prepend` and `append`."""
    shape = op.dims("self")
    place = op.integer("dim") % len(shape)
    why = f"{op.node.target} depends on the order"
    op.pin(shape[place], why)
    for name in ("prepend", "append"):
        if op.has(name):
            more = op.dims(name)
            op.pin(more[place], why)
            op.unify_all(shape[:place] + shape[place + 1 :], more[:place] + more[place + 1 :])
    return (*shape[:place], *op.fixed([op.out[place]], why), *shape[place + 1 :])


@rule(aten.bucketize, zero="lose")
def bucketize(op: Op) -> Shape:
    """Pin the boundaries, among which each value is looked up."""
    op.pin(op.dims("boundaries"), "values are looked up in it")
    return op.dims("self") if op.has("self") else ()


@rule(aten.searchsorted, zero="lose")
def searchsorted(op: Op) -> Shape:
    """Pin the sorted dim of a table, in whose rows the values are looked up; unify the dims of the rows."""
    table, values = op.dims("sorted_sequence"), op.dims("self") if op.has("self") else ()
    op.pin(table[-1], "values are looked up in it")
    if op.has("sorter"):
        op.unify_all(table, op.dims("sorter"))
    if len(table) > 1:
        op.unify_all(table[:-1], values[:-1])
    return values


@rule(aten.isin, zero="lose")
def isin(op: Op) -> Shape:
    """Pin the elements among which each value is looked up."""
    name = "test_elements" if "test_elements" in op.arguments else "test_element"
    if op.has(name):
        op.pin(op.dims(name), "values are looked up in it")
    return op.dims("elements") if op.has("elements") else ()


@rule(aten.index_fill, aten.index_fill_, zero="value")
def index_fill(op: Op) -> Shape:
    """Pin the dim whose positions are written by value."""
    shape = op.dims("self")
    written = shape[op.integer("dim") % max(1, len(shape)) :][:1]
    op.pin((*written, *op.dims("index")), op.looked_up(op["index"], "rows are written"))
    return shape


@rule(aten.max_unpool2d, aten.max_unpool3d, zero="lose")
def unpooled(op: Op) -> Shape:
    """Pin the spatial dims, whose positions are written by value; batch and channels pass through."""
    shape, spots = op.dims("self"), op.dims("indices")
    spatial = 2 if op.node.target.overloadpacket is aten.max_unpool2d else 3  # type: ignore[union-attr]
    op.pin((*shape[-spatial:], *spots[-spatial:]), "places are written by value")
    lead = op.unify_all(shape[:-spatial], spots[:-spatial])
    return (*lead, *op.fixed(op.out[len(lead) :], "places are written by value"))


@rule(aten.frexp, zero="keep")
def frexp(op: Op) -> tuple[Shape, ...]:
    """Return the operand's dims for mantissa and exponent."""
    return op.dims("self"), op.dims("self")
