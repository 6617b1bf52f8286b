"""Windows: pools, resizing, padding by position, unfold and fold read places together with their neighbours; other dims pass through.

Where a window is one place wide, or nothing is resized or padded, places are read alone, and pass through like channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fxprune.dims import Dim, atom, product
from fxprune.dims.dim import pinned
from fxprune.dims.unify import unify
from fxprune.rules.facts import Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.traits import packet_of

aten = torch.ops.aten

WHY = "places (spatial or sequence positions) are read with their neighbours"


def through(op: Op, before: Shape, after: Sequence[int], alone: Sequence[bool]) -> Shape:
    """Return the dims of places: the operand's where each is read alone, else new pinned ones, the operand's being pinned, too."""
    result: list[Dim] = []
    for dim, size, passes in zip(before, after, alone, strict=True):
        if not passes or dim.size != size:
            op.pin(dim, WHY)
        result.append(dim if passes and dim.size == size else op.fixed([size], WHY)[0])
    return tuple(result)


def _spread(values: Sequence[Any], rank: int, default: Any = 1) -> list[Any]:
    """Return an argument's values, one for each place: one value counts for all, and none is the default."""
    return list(values) * rank if len(values) == 1 else list(values) or [default] * rank


def are_points(op: Op, sizes: Sequence[int]) -> list[bool]:
    """Return where a window is one place wide and moves by one place; padding would change the size."""
    strides = _spread(op.integers("stride"), len(sizes), None)
    return [size == 1 and stride in (1, None) for size, stride in zip(sizes, strides, strict=True)]


_POOLS = {
    aten.avg_pool1d: 1, aten.max_pool1d: 1, aten.avg_pool2d: 2, aten.max_pool2d: 2, aten.avg_pool3d: 3, aten.max_pool3d: 3,
}  # fmt: skip


@rule(*_POOLS, zero="keep")
def pool(op: Op) -> Shape:
    """Pin the places along which a window reads several; the others, batch and channels pass through."""
    shape, rank = op.dims("self"), _POOLS[packet_of(op.node.target)]
    alone = are_points(op, _spread(op.integers("kernel_size"), rank))
    return (*shape[:-rank], *through(op, shape[-rank:], op.out[-rank:], alone))


_ADAPTIVE = {
    aten.adaptive_avg_pool1d: 1, aten.adaptive_avg_pool2d: 2, aten._adaptive_avg_pool2d: 2, aten.adaptive_avg_pool3d: 3,
    aten._adaptive_avg_pool3d: 3,
}  # fmt: skip


@rule(*_ADAPTIVE, zero="keep")
def adaptive_pool(op: Op) -> Shape:
    """Pin the places that are resized, but those that become one are averaged over (inexact), and those that stay as many pass through."""
    shape, rank = op.dims("self"), _ADAPTIVE[packet_of(op.node.target)]
    return (*shape[:-rank], *_adapted(op, shape[-rank:], op.out[-rank:]))


def _adapted(op: Op, before: Shape, after: Sequence[int]) -> Iterator[Dim]:
    for place, (dim, size) in enumerate(zip(before, after, strict=True)):
        if size == 1 and dim.size > 1:
            op.inexact(dim, f"{op.node.target} over it at {op.node.name}: the statistic changes")
            yield atom(1)
            continue
        if dim.size == size:
            op.size(dim, "output_size", place)
        yield from through(op, (dim,), (size,), (True,))


_RESIZED = {
    aten.upsample_nearest1d: 1, aten.upsample_linear1d: 1, aten._upsample_nearest_exact1d: 1, aten.upsample_nearest2d: 2,
    aten.upsample_bilinear2d: 2, aten.upsample_bicubic2d: 2, aten._upsample_bilinear2d_aa: 2, aten._upsample_bicubic2d_aa: 2,
    aten._upsample_nearest_exact2d: 2, aten.upsample_nearest3d: 3, aten.upsample_trilinear3d: 3,
}  # fmt: skip


@rule(*_RESIZED, zero="keep")
def resized(op: Op) -> Shape:
    """Pin the places that are resized; those whose scale is 1 pass through."""
    shape, rank = op.dims("self" if "self" in op.arguments else "input"), _RESIZED[packet_of(op.node.target)]
    scales = op["scale_factors"] or [None] * rank
    return (*shape[:-rank], *through(op, shape[-rank:], op.out[-rank:], [scale == 1 for scale in scales]))


_PADDED = {
    aten.reflection_pad1d: 1, aten.replication_pad1d: 1, aten.reflection_pad2d: 2, aten.replication_pad2d: 2, aten.reflection_pad3d: 3,
    aten.replication_pad3d: 3,
}  # fmt: skip


@rule(*_PADDED, zero="keep")
def padded(op: Op) -> Shape:
    """Pin the places that are padded with the values of others; those that are not padded pass through."""
    shape, rank = op.dims("self"), _PADDED[packet_of(op.node.target)]
    return (*shape[:-rank], *unpadded(op, shape[-rank:], op.integers("padding")))


def unpadded(op: Op, places: Shape, amounts: Sequence[int]) -> Shape:
    """Return the dims of the last places behind padding by position, whose amounts begin with the last place."""
    pairs = [tuple(amounts[2 * i : 2 * i + 2]) for i in reversed(range(len(places)))]
    return through(op, places, op.out[-len(places) :], [pair == (0, 0) for pair in pairs])


_WITH_INDICES = {
    aten.max_pool1d_with_indices: 1, aten.adaptive_max_pool1d: 1, aten.max_pool2d_with_indices: 2, aten.adaptive_max_pool2d: 2,
    aten.fractional_max_pool2d: 2, aten.max_pool3d_with_indices: 3, aten.adaptive_max_pool3d: 3, aten.fractional_max_pool3d: 3,
}  # fmt: skip


@rule(*_WITH_INDICES, zero="lose")
def pool_with_indices(op: Op) -> tuple[Shape, ...]:
    """Pin the places, whose numbers are a result; unify the random samples of a fractional pool with batch and channels."""
    shape, rank = op.dims("self"), _WITH_INDICES[packet_of(op.node.target)]
    lead, why = shape[:-rank], f"{op.node.target} gives positions along it"
    op.pin(shape[-rank:], why)
    if op.has("random_samples"):
        for dim, other in zip(reversed(lead), reversed(op.dims("random_samples")[:-1]), strict=False):
            op.unify(dim, other)
        op.pin(op.dims("random_samples")[-1], "one sample a place")
    result = (*lead, *op.fixed(op.outs[0][-rank:], why))
    return result, result


@rule(aten.unfold, aten.unfold_copy, zero="keep")
def unfold(op: Op) -> Shape:
    """Pin the dim that windows are cut from, unless they lie side by side as a view's factors; the others pass through."""
    shape, size = op.dims("self"), op.integer("size")
    if not shape:
        return op.fixed(op.out, WHY)
    place = op.integer("dimension") % len(shape)
    count, window = atom(op.out[place]), atom(size)
    if size == op.integer("step") and shape[place].size % size == 0 and pinned(shape[place]) is None:
        unify(shape[place], product([count, window]), op.node.name)
        op.size(window, "size")
        op.size(window, "step")
    else:
        op.pin((shape[place], count, window), WHY)
    return (*shape[:place], count, *shape[place + 1 :], window)


@rule(aten.im2col, zero="keep")
def im2col(op: Op) -> Shape:
    """`(b) c h w -> (b) (c k!) (h w)`: the places that windows read together are pinned, and so are the places within a window."""
    *lead, channels, height, width = op.dims("self")
    window = op.fixed(op.integers("kernel_size"), WHY)
    after = _window_counts(op, (height, width))
    places = through(op, (height, width), after, are_points(op, op.integers("kernel_size")))
    return (*lead, product([channels, *window]), product(places))


def _window_counts(op: Op, places: Shape) -> list[int]:
    """Return the numbers of windows along the places."""
    names = ("kernel_size", "dilation", "padding", "stride")
    rows = zip(*(_spread(op.integers(name), len(places)) for name in names), strict=True)
    return [
        (dim.size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for dim, (kernel, dilation, padding, stride) in zip(places, rows, strict=True)
    ]


@rule(aten.col2im, zero="keep")
def col2im(op: Op) -> Shape:
    """`(b) (c k!) l! -> (b) c h! w!`: windows are added up where they overlap."""
    *lead, columns, windows = op.dims("self")
    channels = atom(op.out[-3])
    unify(columns, product([channels, *op.fixed(op.integers("kernel_size"), WHY)]), op.node.name)
    op.pin(windows, WHY)
    return (*lead, channels, *op.fixed(op.out[-2:], WHY))
