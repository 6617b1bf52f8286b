"""Movement operators: they move values and never mix them, so their dims are the operand's, merged, cut or joined."""

from __future__ import annotations

import math

import torch

from fxprune.dims import Dim, atom, product
from fxprune.dims.dim import mirror, pinned, total
from fxprune.dims.unify import unify, unify_products
from fxprune.rules.facts import Shape
from fxprune.rules.notation import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.traits import packet_of

aten = torch.ops.aten


def axis(op: Op, name: str = "dim", tensor: str = "self") -> int:
    """Return a dimension argument as a non-negative number."""
    return op.integer(name) % max(1, len(op.dims(tensor)))


@rule(aten.view, aten.reshape, aten._unsafe_view, aten.view_copy, aten._reshape_copy, zero="keep")
def view(op: Op) -> Shape:
    """Unify the product of the result's dims with that of the operand's; pin all dims where the dtype changes."""
    if op.arguments.get("dtype"):
        return op.opaque("a view as another dtype reinterprets memory")
    name = "size" if "size" in op.arguments else "shape"
    result = op.fresh()
    unify_products(op.dims("self"), result, op.node.name)
    for place, dim in enumerate(result):
        op.size(dim, name, place)
    return result


@rule(aten._reshape_alias, zero="keep")
def reshape_alias(op: Op) -> Shape:
    """Pin all dims: the strides are numbers that depend on all sizes."""
    return op.opaque("_reshape_alias reads positions by stride")


@rule(aten.flatten, zero="keep")
def flatten(op: Op) -> Shape:
    """Merge dims start…end into their product."""
    shape = op.dims("self")
    start, end = op.integer("start_dim") % max(1, len(shape)), op.integer("end_dim") % max(1, len(shape))
    return (*shape[:start], product(shape[start : end + 1]), *shape[end + 1 :])


@rule(aten.unflatten, zero="keep")
def unflatten(op: Op) -> Shape:
    """Split one dim into the factors of a product."""
    shape, place = op.dims("self"), axis(op)
    parts = op.fresh()[place : len(op.out) - (len(shape) - place - 1)]
    unify_products([shape[place]], parts, op.node.name)
    for index, part in enumerate(parts):
        op.size(part, "sizes", index)
    return (*shape[:place], *parts, *shape[place + 1 :])


@rule(aten.permute, aten.permute_copy, zero="keep")
def permute(op: Op) -> Shape:
    """Reorder dims: `self.dims[i]` for i in dims."""
    shape = op.dims("self")
    return tuple(shape[i] for i in op.integers("dims"))


@rule(aten.transpose, aten.swapaxes, aten.swapdims, aten.transpose_copy, zero="keep")
def transpose(op: Op) -> Shape:
    """Swap two dims."""
    shape = list(op.dims("self"))
    first, second = ("dim0", "dim1") if "dim0" in op.arguments else ("axis0", "axis1")
    one, other = op.integer(first), op.integer(second)
    shape[one], shape[other] = shape[other], shape[one]
    return tuple(shape)


@rule(aten.t, aten.adjoint, aten.mT, aten.mH, aten.matrix_H, aten.t_copy, zero="keep")
def matrix_transpose(op: Op) -> Shape:
    """Swap the last two dims."""
    shape = op.dims("self")
    return (*shape[:-2], *reversed(shape[-2:]))


@rule(aten.numpy_T, zero="keep")
def numpy_transpose(op: Op) -> Shape:
    """Reverse all dims, of any number."""
    return tuple(reversed(op.dims("self")))


@rule(aten.movedim, aten.moveaxis, zero="keep")
def movedim(op: Op) -> Shape:
    """Move the dims `source` to `destination`."""
    shape = op.dims("self")
    source = [i % len(shape) for i in op.integers("source")]
    destination = [i % len(shape) for i in op.integers("destination")]
    rest = iter(i for i in range(len(shape)) if i not in source)
    place = dict(zip(destination, source, strict=True))
    return tuple(shape[place[i] if i in place else next(rest)] for i in range(len(shape)))


@rule(aten.unsqueeze, aten.unsqueeze_copy, zero="keep")
def unsqueeze(op: Op) -> Shape:
    """Add a dim of size 1."""
    shape = op.dims("self")
    place = op.integer("dim") % (len(shape) + 1)
    return (*shape[:place], atom(1), *shape[place:])


@rule(aten.squeeze, aten.squeeze_copy, zero="keep")
def squeeze(op: Op) -> Shape:
    """Remove the dims of size 1 among the named ones (or all), and pin those that were named: the result depends on their sizes."""
    shape = op.dims("self")
    named = op.integers("dim") if "dim" in op.arguments else tuple(range(len(shape)))
    places = {i % max(1, len(shape)) for i in named}
    for i in places:
        op.pin(shape[i], "squeeze looks at whether its size is 1")
    return tuple(dim for i, dim in enumerate(shape) if i not in places or dim.size != 1)


@rule(aten.expand, aten.expand_copy, aten.broadcast_to, zero="keep")
def expand(op: Op) -> Shape:
    """Replace expanded dims of size 1 by new free dims, and add new leading ones; they shrink with the dims that they unify with."""
    shape = op.dims("self")
    lead = len(op.out) - len(shape)
    result = tuple(_expanded(shape[i - lead] if i >= lead else None, size) for i, size in enumerate(op.out))
    for place, dim in enumerate(result):
        op.size(dim, "size", place)
    return result


@rule(aten.broadcast_tensors, zero="lose")
def broadcast_tensors(op: Op) -> tuple[Shape, ...]:
    """Give every result the dims of the broadcast."""
    shape = broadcast(op, [op.flow.dims[node] for node in op.tensors()], op.outs[0])
    return tuple(shape for _ in op.outs)


def _expanded(dim: Dim | None, size: int) -> Dim:
    return dim if dim is not None and dim.size == size else atom(size)


@rule(aten.repeat, aten.tile, zero="keep")
def repeat(op: Op) -> Shape:
    """Merge repeats and dim: repeat(r) of d is Product(r, d)."""
    shape = op.dims("self")
    name = "repeats" if "repeats" in op.arguments else "dims"
    times = op.integers(name)
    lead = max(0, len(times) - len(shape))
    times = (1,) * max(0, len(shape) - len(times)) + times
    shape = (*(atom(1) for _ in range(lead)), *shape)
    counts = [atom(count) for count in times]
    for place, count in enumerate(counts[len(counts) - len(op.integers(name)) :]):
        op.size(count, name, place)
    return tuple(product([count, dim]) for count, dim in zip(counts, shape, strict=True))


@rule(aten.repeat_interleave, zero="keep")
def repeat_interleave(op: Op) -> Shape:
    """Merge dim and repeats: repeat_interleave(r) of d is Product(d, r); without a dim, all are one. Pin a dim that a tensor repeats."""
    if "self" not in op.arguments:
        return op.opaque("repeat_interleave of a tensor gives positions")
    shape = op.dims("self")
    lead, dim, rest = ((), product(shape), ()) if op["dim"] is None else _around(shape, axis(op))
    if isinstance(op["repeats"], torch.fx.Node):
        why = "a tensor says how often repeat_interleave repeats each position"
        op.pin((dim, *op.dims("repeats")), why)
        return (*lead, *op.fixed([op.out[len(lead)]], why), *rest)
    count = atom(op.integer("repeats"))
    joined = product([dim, count])
    op.size(count, "repeats")
    if op["output_size"] is not None:
        op.size(joined, "output_size")
    return (*lead, joined, *rest)


def _around(shape: Shape, place: int) -> tuple[Shape, Dim, Shape]:
    return shape[:place], shape[place], shape[place + 1 :]


@rule(aten.cat, aten.concat, aten.concatenate, zero="keep")
def cat(op: Op) -> Shape:
    """Concatenate along a dim, which becomes a Sum; unify the others. Legacy empty operands of one dim are skipped."""
    shapes = [op.flow.dims[node] for node in op.tensors()]
    shapes = [shape for shape in shapes if len(shape) == len(op.out)]
    place = op.integer("dim") % len(op.out)
    joined, apart = join_along(op, shapes, place), op.join(place)
    return joined if apart is None else (*joined[:place], apart, *joined[place + 1 :])


def join_along(op: Op, shapes: list[Shape], place: int) -> Shape:
    """Concatenate shapes along a dim, which becomes their Sum; unify the others."""
    result = list(shapes[0])
    for shape in shapes[1:]:
        for i, dim in enumerate(shape):
            result[i] = op.unify(result[i], dim) if i != place else dim
    result[place] = total(shape[place] for shape in shapes)
    return tuple(result)


@rule(aten.stack, aten._stack, zero="keep")
def stack(op: Op) -> Shape:
    """Unify the operands; pin the new dim, whose positions are the operands, unless these can leave."""
    shapes = [op.flow.dims[node] for node in op.tensors()]
    for shape in shapes[1:]:
        op.unify_all(shapes[0], shape)
    place = op.integer("dim") % len(op.out)
    new = op.join(place) or op.fixed([len(shapes)], "stack: the position says which operand")[0]
    return (*shapes[0][:place], new, *shapes[0][place:])


@rule(aten.split_with_sizes, aten.split_with_sizes_copy, aten.unsafe_split_with_sizes, zero="keep")
def split_with_sizes(op: Op) -> tuple[Shape, ...]:
    """Split a dim, which is the Sum of the parts."""
    shape, place = op.dims("self"), axis(op)
    parts = [atom(out[place]) for out in op.outs]
    if op.part():
        return tuple((*shape[:place], part, *shape[place + 1 :]) for part in parts)
    unify(shape[place], total(parts), op.node.name)
    for index, part in enumerate(parts):
        op.size(part, "split_sizes", index)
    return tuple((*shape[:place], part, *shape[place + 1 :]) for part in parts)


@rule(
    aten.chunk, aten.split, aten.unsafe_chunk, aten.unsafe_split, aten.split_copy, aten.tensor_split, zero="keep",
)  # fmt: skip
def split_by_count(op: Op) -> tuple[Shape, ...]:
    """Pin the dim that is split by a count or a step, for only dims of symbolic size still are, unless all of it is one part."""
    shape, place = op.dims("self"), axis(op)
    if len(op.outs) == 1:
        return (shape,)
    parts = [atom(out[place]) for out in op.outs]
    size = op["self"].meta["val"].shape[place]
    what = "it by numbers" if isinstance(size, int) else "a symbolic size"
    op.pin((shape[place], *parts), f"{op.node.target} cuts {what}")
    return tuple((*shape[:place], part, *shape[place + 1 :]) for part in parts)


@rule(aten.unbind, aten.unbind_copy, zero="keep")
def _unbind(op: Op) -> tuple[Shape, ...]:
    """Remove and pin a dim: each of its positions is a result, which can leave only with its addend."""
    shape, place = op.dims("self"), axis(op)
    if not op.part():
        op.pin(shape[place], "unbind: each position is a result of its own")
    return tuple(shape[:place] + shape[place + 1 :] for _ in op.outs)


def _cut(op: Op, dim: Dim, start: int, length: int) -> tuple[Dim, Dim, Dim]:
    """Unify a dim with Sum(before, middle, after), and return the three parts."""
    before, middle, after = atom(start), atom(length), atom(dim.size - start - length)
    unify(dim, total([before, middle, after]), op.node.name)
    return before, middle, after


@rule(aten.slice, aten.slice_copy, zero="keep")
def slice_(op: Op) -> Shape:
    """Cut a dim: start…end is the middle of a Sum; a step that divides the size makes Product(m, step)."""
    shape, place, step = op.dims("self"), axis(op), op.integer("step")
    dim, length = shape[place], op.out[axis(op)]
    start, end = _bounds(op, dim.size)
    if op.part():
        kept = atom(1)
    elif step != 1:
        kept = _strided(op, dim, start, end, step, length)
    elif length == dim.size:
        kept = dim
        if op["end"] is not None and op.integer("end") == dim.size:
            op.size(dim, "end")
    else:
        kept = _middle(op, dim, start, length) if length else atom(0)
    return (*shape[:place], kept, *shape[place + 1 :])


def _bounds(op: Op, size: int) -> tuple[int, int]:
    start = op.integer("start") if op["start"] is not None else 0
    end = op.integer("end") if op["end"] is not None else size
    start, end = (value + size if value < 0 else value for value in (start, end))
    return min(max(start, 0), size), min(max(end, 0), size)


def _middle(op: Op, dim: Dim, start: int, length: int) -> Dim:
    if start + length > dim.size:
        kept = atom(length)
        op.pin((dim, kept), "a slice of a length that depends on data")
        return kept
    if pinned(dim):
        return op.fixed([length], "a slice of what stays whole")[0]
    before, kept, after = _cut(op, dim, start, length)
    if op["start"] is not None and op.integer("start") >= 0:
        op.size(before, "start")
    elif op["start"] is not None:
        op.size(total([kept, after]), "start")
    if op["end"] is not None and 0 <= op.integer("end") <= dim.size:
        op.size(total([before, kept]), "end")
    elif op["end"] is not None and op.integer("end") < 0:
        op.size(after, "end")
    return kept


def _strided(op: Op, dim: Dim, start: int, end: int, step: int, length: int) -> Dim:
    kept = atom(length)
    if pinned(dim):
        return op.fixed([length], "a slice of what stays whole")[0]
    if dim.size % step or end != dim.size or start >= step:
        what = "does not divide its size" if dim.size % step else "leaves out its first or last positions"
        op.pin((dim, kept), f"a slice with step {step} that {what}")
        return kept
    phase = atom(step)
    op.pin(phase, f"a slice with step {step} reads it by position")
    unify(dim, product([kept, phase]), op.node.name)
    if op["end"] is not None and op.integer("end") == dim.size:
        op.size(dim, "end")
    return kept


@rule(aten.select, aten.select_copy, zero="keep")
def select(op: Op) -> Shape:
    """Read one position of a dim; the others can be removed."""
    shape, place = op.dims("self"), axis(op)
    dim, index = shape[place], op.integer("index") % max(1, shape[place].size)
    if not op.part() and pinned(dim) is None:
        before, _, after = _cut(op, dim, index, 1)
        op.size(before if op.integer("index") >= 0 else total([atom(1), after]), "index")
    return shape[:place] + shape[place + 1 :]


@rule(aten.constant_pad_nd, zero="value")
def constant_pad(op: Op) -> Shape:
    """Pad with free parts of a Sum, which shrink with the dims that they unify with (ResNet's option-A shortcut)."""
    shape, amounts = list(op.dims("self")), op.integers("pad")
    for i in range(0, len(amounts), 2):
        place = len(shape) - 1 - i // 2
        shape[place] = _padded(op, shape[place], i, (amounts[i], amounts[i + 1]))
    return tuple(shape)


def _padded(op: Op, dim: Dim, index: int, amounts: tuple[int, int]) -> Dim:
    if amounts == (0, 0):
        return dim
    if min(amounts) < 0:
        op.pin(dim, "a negative pad cuts")
        result = atom(dim.size + sum(amounts))
        op.pin(result, "a negative pad cuts")
        return result
    parts = [atom(amounts[0]), dim, atom(amounts[1])]
    op.size(parts[0], "pad", index)
    op.size(parts[2], "pad", index + 1)
    return total(parts)


_FLIPPED = {aten.flip: (), aten.flipud: (0,), aten.fliplr: (1,)}


@rule(*_FLIPPED, zero="keep")
def flip(op: Op) -> Shape:
    """Mirror the dims that are flipped; what stays whole needs no order."""
    shape = list(op.dims("self"))
    named = op.integers("dims") if "dims" in op.arguments else _FLIPPED[packet_of(op.node.target)]
    for i in named:
        shape[i] = shape[i] if pinned(shape[i]) else mirror(shape[i])
    return tuple(shape)


_MOST_PIECES = 64
"""A roll by a step that cuts a dim into more pieces than this pins it."""


@rule(aten.roll, zero="keep")
def roll(op: Op) -> Shape:
    """Swap the two parts of each rolled dim; pin all dims where they are rolled as one."""
    shape, named = list(op.dims("self")), op.integers("dims")
    if not named:
        op.pin(shape, f"{op.node.target} of all places in a row")
    for index, (i, shift) in enumerate(zip(named, op.integers("shifts"), strict=False)):
        shape[i] = shape[i] if pinned(shape[i]) else _rolled(op, shape[i], index, shift)
    return tuple(shape)


def _rolled(op: Op, dim: Dim, index: int, shift: int) -> Dim:
    if shift % dim.size == 0 or abs(shift) > dim.size or dim.size > _MOST_PIECES * math.gcd(dim.size, shift):
        op.pin(dim, f"a roll of {dim.size} places by {shift}")
        return dim
    head, tail = atom(dim.size - shift % dim.size), atom(shift % dim.size)
    unify(dim, total([head, tail]), op.node.name)
    op.size(tail if shift > 0 else head, "shifts", index)
    return total([tail, head])


@rule(aten.rot90, zero="keep")
def _ordered(op: Op) -> Shape:
    """Pin the dims whose order matters."""
    shape = op.dims("self")
    for i in op.integers("dims"):
        op.pin(shape[i], f"{op.node.target} depends on the order")
    return shape if tuple(d.size for d in shape) == op.out else op.fresh()
