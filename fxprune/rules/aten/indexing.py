"""Indexing: dims that are indexed by value are pinned, unless the values number them; the others pass through."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch.fx import Node

from fxprune.dims import Dim, atom
from fxprune.dims.dim import reordered
from fxprune.ir import attribute, shape_of, storage_key
from fxprune.rules.facts import Dims, Shape
from fxprune.rules.notation import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.traits import packet_of, passes_value

aten = torch.ops.aten


@rule(aten.embedding, zero="first")
def embedding(op: Op) -> Shape:
    """`v d, * -> * d`: rows are indexed by value, so v is pinned unless the values number it."""
    rows, inner = op.dims("weight")
    op.look_up(rows, op["indices"], op.looked_up(op["indices"]))
    return (*op.dims("indices"), inner)


@rule(aten.embedding_bag, aten._embedding_bag, aten._embedding_bag_forward_only, zero="first")
def embedding_bag(op: Op) -> tuple[Shape, ...]:
    """`v d, … -> b! d`, and three results of indices: rows are indexed by value and pooled in bags that offsets delimit."""
    rows, inner = op.dims("weight")
    op.look_up(rows, op["indices"], op.looked_up(op["indices"]))
    why = "rows are pooled in bags that offsets delimit"
    for name in ("indices", "offsets", "per_sample_weights"):
        op.pin(op.dims(name) if op.has(name) else (), why)
    results = [tuple(atom(size) for size in sizes) for sizes in op.outs]
    # The indices of the maxima have the dim d, too.
    places = tuple((shape[0], inner) if len(shape) == 2 else shape for shape in results)
    for shape in places:
        op.pin(shape[:1], why)
    return places


@rule(aten.index, aten._unsafe_index, zero="first")
def index(op: Op) -> Shape:
    """Replace indexed dims by those of the index tensors, in the place of the first, or in front if the indexed ones are not adjacent.

    An indexed dim is pinned unless the values number it, or a constant only puts its positions into another order; the dims of a mask
    become one, and all of these are pinned.
    """
    spans = _spans(op)
    moved = _in_order(op, spans[0][0], spans[0][1].start) if len(spans) == 1 else None
    if moved is not None:
        return moved
    _pin_masked(op, spans)
    unmasked = [(item, span) for item, span in spans if not _is_mask(item)]
    for item, span in unmasked:
        op.look_up(op.dims("self")[span[0]], item, op.looked_up(item))
    before, count, after = _layout(op, spans)
    if len(unmasked) == len(spans):
        return (*before, *_index_dims(op, [item for item, _ in spans]), *after)
    op.pin(
        (dim for item, _ in unmasked for dim in op.flow.dims[item]), "it is paired with what a mask chooses"
    )
    return (*before, *op.fixed(op.out[len(before) :][:count], "a mask says how many there are"), *after)


def _in_order(op: Op, item: Node, place: int) -> Shape | None:
    """Return the dims of a value of which a constant puts one into another order, which is the constant's own dim, too; else None."""
    shape = op.dims("self")
    order = _order(op, item, shape[place])
    if not order:
        return None
    result = reordered(shape[place], order)
    op.unify(op.flow.dims[item][0], result)
    op.flow.positions[item] = shape[place]
    return (*shape[:place], result, *shape[place + 1 :])


def _order(op: Op, item: Node, dim: Dim) -> tuple[int, ...]:
    """Return the order into which a constant puts all positions of a dim; () where it does not, or something else reads it, too."""
    if item.op != "get_attr" or _is_mask(item) or item.meta["val"].shape != (dim.size,):
        return ()
    module, graph = item.graph.owning_module, item.graph
    assert module is not None
    value = attribute(module, str(item.target))
    if value.is_meta:
        return ()
    key = storage_key(value)
    nodes = [
        n for n in graph.find_nodes(op="get_attr") if storage_key(attribute(module, str(n.target))) == key
    ]
    places = [int(i) % dim.size for i in value.tolist()]
    alone = [user for node in nodes for user in node.users] == [op.node]
    return tuple(places) if alone and sorted(places) == [*range(dim.size)] else ()


def _is_mask(item: object) -> bool:
    return isinstance(item, Node) and item.meta["val"].dtype in (torch.bool, torch.uint8)


Spans: TypeAlias = list[tuple[Node, range]]


def _spans(op: Op) -> Spans:
    """Return each index tensor with the places that it indexes: a mask indexes as many as it has dims."""
    spans: Spans = []
    at = 0
    for item in op["indices"]:
        width = len(op.flow.dims[item]) if _is_mask(item) else 1
        spans += [(item, range(at, at + width))] if item is not None else []
        at += width
    return spans


def _pin_masked(op: Op, spans: Spans) -> None:
    masked = [(item, span) for item, span in spans if _is_mask(item)]
    for item, span in masked:
        op.pin(
            (*op.dims("self")[span.start : span.stop], *op.flow.dims[item]),
            "a mask chooses among its positions",
        )


def _layout(op: Op, spans: Spans) -> tuple[Shape, int, Shape]:
    """Return the dims of `self[indices]`: those in front of the indices' own, the number of these, and those behind them."""
    shape = op.dims("self")
    places = [i for _, span in spans for i in span]
    lead = places[0] if places and len(places) == places[-1] - places[0] + 1 else 0
    count = max(1 if _is_mask(item) else len(op.flow.dims[item]) for item, _ in spans)
    return shape[:lead], count, tuple(dim for i, dim in enumerate(shape) if i >= lead and i not in places)


def _index_dims(op: Op, items: list[Node]) -> Shape:
    shapes = [op.flow.dims[item] for item in items]
    sizes = torch.broadcast_shapes(*[tuple(dim.size for dim in shape) for shape in shapes])
    return broadcast(op, shapes, tuple(sizes))


@rule(aten.index_put, aten.index_put_, aten._unsafe_index_put, zero="value")
def index_put(op: Op) -> Shape:
    """Pin the dims written by index or mask, and the values' along them; unify the others with the values'."""
    shape, spans = op.dims("self"), _spans(op)
    varying = next((item for item, _ in spans if item in op.flow.varies), None)
    why = op.looked_up(varying, "rows are written")
    _pin_masked(op, spans)
    op.pin((shape[i] for item, span in spans if not _is_mask(item) for i in span), why)
    before, count, after = _layout(op, spans)
    places = zip(reversed((*before, *[None] * count, *after)), reversed(op.dims("values")), strict=False)
    for dim, other in places:
        op.unify(dim, other) if dim is not None else op.pin(other, "values are placed by position")
    return shape


@rule(aten.gather, zero="first")
def gather(op: Op) -> Shape:
    """Look up the gathered dim by value; unify the others with the index's dims where the sizes agree, else pin them."""
    name = "index" if "index" in op.arguments else "indices"
    shape, positions = op.dims("self"), op.dims(name)
    place = op.integer("dim") % max(1, len(shape))
    for i, (dim, other) in enumerate(zip(shape, positions, strict=True)):
        if i == place:
            op.look_up(dim, op[name], op.looked_up(op[name], "positions are looked up"))
        elif dim.size == other.size:
            op.unify(dim, other)
        else:
            op.pin((dim, other), "gather reads a part of it")
    return positions


@rule(aten.take_along_dim, zero="first")
def take_along_dim(op: Op) -> Shape:
    """Apply `gather` where sizes agree; pin all dims where operands are flattened or broadcast."""
    shape, positions = op.dims("self"), op.dims("indices")
    if op["dim"] is None or tuple(dim.size for dim in positions) != op.out or len(shape) != len(positions):
        return op.opaque("take_along_dim that flattens or broadcasts")
    return gather(op)


@rule(aten.scatter, zero="value")
def scatter(op: Op) -> Shape:
    """Pin the dim that is written unless the values number it; unify the others where all sizes agree, else pin them."""
    shape = op.dims("self")
    others = [op.dims(name) for name in ("index", "src") if op.has(name)]
    place = op.integer("dim") % max(1, len(shape))
    for i, dim in enumerate(shape):
        mates = [other[i] for other in others]
        if i == place:
            why = op.looked_up(op["index"], "positions are written")
            op.look_up(dim, op["index"], why)
            op.pin(mates, why)
        elif all(mate.size == dim.size for mate in mates):
            op.unify_all([dim] * len(mates), mates)
        else:
            op.pin((dim, *mates), "scatter writes a part of it")
    return shape


@rule(
    aten.scatter_add,
    aten.scatter_reduce,
    aten.scatter_,
    aten.scatter_add_,
    aten.scatter_reduce_,
    zero="value",
)
def scatter_more(op: Op) -> Shape:
    """Apply `scatter`, and always pin the dim that is written."""
    place = op.integer("dim") % max(1, len(op.dims("self")))
    shape = scatter(op)
    if shape:
        op.pin(shape[place], op.looked_up(op["index"], "positions are written"))
    return shape


@rule(aten.one_hot, zero="value")
def one_hot(op: Op) -> Shape:
    """Add the dim that the values number, or a pinned dim of classes where it is not known."""
    classes = atom(op.out[-1])
    numbered = op.chosen(op["self"])
    if numbered is None or numbered.size != classes.size:
        op.pin((classes, *([numbered] if numbered else [])), "positions are marked by value")
    else:
        op.unify(classes, numbered)
        op.size(numbered, "num_classes")
    return (*op.dims("self"), classes)


@rule(aten.index_select, zero="first")
def index_select(op: Op) -> Shape:
    """Look up one dim by value."""
    shape, place = op.dims("self"), op.integer("dim") % max(1, len(op.dims("self")))
    op.look_up(shape[place], op["index"], op.looked_up(op["index"]))
    rows = op.dims("index")
    return (*shape[:place], rows[0] if rows else atom(1), *shape[place + 1 :])


@rule(aten.index_add, aten.index_copy, aten.index_add_, aten.index_copy_, zero="value")
def index_add(op: Op) -> Shape:
    """Pin the dim along which rows are written by value; unify the others."""
    shape, source = op.dims("self"), op.dims("source")
    place = op.integer("dim") % max(1, len(shape))
    for i, (dim, other) in enumerate(zip(shape, source, strict=True)):
        if i == place:
            op.pin((dim, other), op.looked_up(op["index"], "rows are written"))
        else:
            op.unify(dim, other)
    return shape


@rule(aten.slice_scatter, aten.select_scatter, zero="value")
def written(op: Op) -> Shape:
    """Pin the dim of which a part is written; unify the others with those of what is written."""
    shape, source, why = op.dims("self"), op.dims("src"), f"{op.node.target} writes a part by position"
    place = op.integer("dim") % len(shape)
    behind = place + len(source) - len(shape) + 1
    op.pin((shape[place], *source[place:behind]), why)
    op.unify_all(shape[:place] + shape[place + 1 :], source[:place] + source[behind:])
    return shape


@rule(aten.masked_scatter, aten.masked_scatter_, zero="value")
def masked_scatter(op: Op) -> Shape:
    """Pin all dims, for the source is read in the order of the places; the last one stays free if the mask chooses whole rows."""
    shape, source, mask = op.dims("self"), op.dims("source"), op.dims("mask")
    if not source or source[-1].size != shape[-1].size or not _chooses_rows(op["mask"]):
        return op.opaque(f"{op.node.target} writes positions by value")
    op.pin((*shape[:-1], *source[:-1], *mask[:-1]), f"{op.node.target} writes rows by value")
    for other in (source[-1], *mask[-1:]):
        op.unify(shape[-1], other)
    return shape


def _chooses_rows(mask: Node) -> bool:
    """Return whether a mask has one value for each row: its last dim has size 1, or is expanded from that."""
    while passes_value(mask):
        mask = mask.args[0]  # type: ignore[assignment]
    if packet_of(mask.target) in (aten.expand, aten.expand_copy, aten.broadcast_to):
        mask = mask.args[0]  # type: ignore[assignment]
    return (shape_of(mask.meta["val"]) or (1,))[-1] == 1


@rule(aten.tril, aten.triu, aten.tril_, aten.triu_, zero="keep")
def triangle(op: Op) -> Shape:
    """Pin the last two dims, whose positions are compared."""
    shape = op.dims("self")
    op.pin(shape[-2:], f"{op.node.target} compares positions")
    return shape


@rule(aten.diagonal, aten.diagonal_copy, zero="keep")
def diagonal(op: Op) -> Shape:
    """Pin the two dims whose positions are compared; the result has the others, and a last one of its own."""
    shape = op.dims("self")
    places = {op.integer(name) % len(shape) for name in ("dim1", "dim2")}
    why = f"{op.node.target} compares positions"
    op.pin((shape[i] for i in places), why)
    return (*(dim for i, dim in enumerate(shape) if i not in places), *op.fixed(op.out[-1:], why))


@rule(aten.diag_embed, zero="keep")
def diag_embed(op: Op) -> Shape:
    """Pin the last dim, and the two that its positions are written along; the others pass through."""
    shape, why = list(op.dims("self")), f"{op.node.target} writes by position"
    places = sorted(op.integer(name) % len(op.out) for name in ("dim1", "dim2"))
    op.pin(shape.pop(), why)
    for place in places:
        shape.insert(place, *op.fixed([op.out[place]], why))
    return tuple(shape)


@rule(aten.diag, aten.as_strided, zero="lose")
def strided(op: Op) -> Shape:
    """Pin all dims: positions are read by stride."""
    return op.opaque(f"{op.node.target} reads positions by stride")


@rule(aten.nonzero, aten.nonzero_numpy, aten.argwhere, zero="lose")
def positions(op: Op) -> Dims:
    """Pin all dims: the positions of what is not zero are listed."""
    return op.listed()
