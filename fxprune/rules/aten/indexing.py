"""Indexing: dims that are indexed by value are pinned, unless the values number them; the others pass through."""

from __future__ import annotations

import torch
from torch.fx import Node

from fxprune.dims import atom
from fxprune.rules.facts import Shape
from fxprune.rules.notation import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule(aten.embedding, zero="first")
def embedding(op: Op) -> Shape:
    """`v d, * -> * d`: rows are indexed by value, so v is pinned unless the values number it."""
    rows, inner = op.dims("weight")
    op.look_up(rows, op["indices"], f"{op.node.target} reads it by position")
    return (*op.dims("indices"), inner)


@rule(aten.embedding_bag, aten._embedding_bag, aten._embedding_bag_forward_only, zero="first")
def embedding_bag(op: Op) -> tuple[Shape, ...]:
    """`v d, … -> b! d`, and three results of indices: rows are indexed by value and pooled in bags that offsets delimit."""
    rows, inner = op.dims("weight")
    why = f"{op.node.target} reads it by position"
    op.look_up(rows, op["indices"], why)
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

    An indexed dim is pinned unless the values number it; indexing by a mask pins all dims.
    """
    shape, indices = op.dims("self"), list(op["indices"])
    if any(_is_mask(item) for item in indices):
        return op.opaque("indexing by a mask depends on values")
    indices += [None] * (len(shape) - len(indices))
    places = [i for i, item in enumerate(indices) if item is not None]
    for i in places:
        op.look_up(shape[i], indices[i], "rows are looked up by value")
    carried = _index_dims(op, [indices[i] for i in places])
    rest = [dim for i, dim in enumerate(shape) if i not in places]
    adjacent = places == list(range(places[0], places[0] + len(places)))
    at = places[0] if adjacent else 0
    return (*rest[:at], *carried, *rest[at:])


def _is_mask(item: object) -> bool:
    return isinstance(item, Node) and item.meta["val"].dtype in (torch.bool, torch.uint8)


def _index_dims(op: Op, items: list[Node]) -> Shape:
    shapes = [op.flow.dims[item] for item in items]
    sizes = torch.broadcast_shapes(*[tuple(dim.size for dim in shape) for shape in shapes])
    return broadcast(op, shapes, tuple(sizes))


@rule(aten.index_put, aten.index_put_, aten._unsafe_index_put, zero="lose")
def index_put(op: Op) -> Shape:
    """Pin the dims written by index and the values' along them; unify the trailing dims if only leading ones are indexed, else pin all."""
    shape, indices = op.dims("self"), list(op["indices"])
    touched = range(len(shape)) if any(_is_mask(i) for i in indices) else range(len(indices))
    written = [shape[i] for i in touched if i >= len(indices) or indices[i] is not None]
    op.pin(written, "rows are written by value")
    if all(item is not None for item in indices) and len(indices) < len(shape):
        tail = shape[len(indices) :]
        for dim, other in zip(reversed(tail), reversed(op.dims("values")), strict=False):
            op.unify(dim, other)
        lead = len(op.dims("values")) - len(tail)
        op.pin(op.dims("values")[: max(0, lead)], "values are placed by position")
    else:
        op.pin((*shape, *op.dims("values")), "values are placed by position")
    return shape


@rule(aten.gather, zero="first")
def gather(op: Op) -> Shape:
    """Look up the gathered dim by value; unify the others with the index's dims where the sizes agree, else pin them."""
    name = "index" if "index" in op.arguments else "indices"
    shape, positions = op.dims("self"), op.dims(name)
    place = op.integer("dim") % max(1, len(shape))
    for i, (dim, other) in enumerate(zip(shape, positions, strict=True)):
        if i == place:
            op.look_up(dim, op[name], "gather looks positions up by value")
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
            op.look_up(dim, op["index"], "scatter writes positions by value")
            op.pin(mates, "scatter writes positions by value")
        elif all(mate.size == dim.size for mate in mates):
            op.unify_all([dim] * len(mates), mates)
        else:
            op.pin((dim, *mates), "scatter writes positions by value")
    return shape


@rule(
    aten.scatter_add, aten.scatter_reduce, aten.scatter_, aten.scatter_add_, aten.scatter_reduce_, zero="lose"
)
def scatter_more(op: Op) -> Shape:
    """Apply `scatter`, and always pin the dim that is written."""
    place = op.integer("dim") % max(1, len(op.dims("self")))
    shape = scatter(op)
    if shape:
        op.pin(shape[place], "scatter writes positions by value")
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
    op.look_up(shape[place], op["index"], "rows are looked up by value")
    rows = op.dims("index")
    return (*shape[:place], rows[0] if rows else atom(1), *shape[place + 1 :])


@rule(aten.index_add, aten.index_copy, aten.index_add_, aten.index_copy_, zero="lose")
def index_add(op: Op) -> Shape:
    """Pin the dim along which rows are written by value; unify the others."""
    shape, source = op.dims("self"), op.dims("source")
    place = op.integer("dim") % max(1, len(shape))
    for i, (dim, other) in enumerate(zip(shape, source, strict=True)):
        if i == place:
            op.pin((dim, other), "rows are written by value")
        else:
            op.unify(dim, other)
    return shape


@rule(aten.slice_scatter, aten.select_scatter, aten.masked_scatter, aten.masked_scatter_, zero="lose")
def written(op: Op) -> Shape:
    """Pin all dims: a part is written by position."""
    return op.opaque(f"{op.node.target} writes a part by position")


@rule(aten.tril, aten.triu, aten.tril_, aten.triu_, zero="keep")
def triangle(op: Op) -> Shape:
    """Pin the last two dims, whose positions are compared."""
    shape = op.dims("self")
    op.pin(shape[-2:], f"{op.node.target} compares positions")
    return shape


@rule(
    aten.diagonal, aten.diag_embed, aten.diagonal_copy, aten.diag, aten.unfold, aten.unfold_copy, aten.as_strided, aten.im2col, aten.col2im,
    zero="lose",
)  # fmt: skip
def strided(op: Op) -> Shape:
    """Pin all dims: positions are read by stride."""
    return op.opaque(f"{op.node.target} reads positions by stride")
