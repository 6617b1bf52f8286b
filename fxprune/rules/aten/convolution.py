"""Convolutions: contractions over channels, Product(groups, m) where grouped; pooling and resizing act per channel."""

from __future__ import annotations

import torch

from fxprune.dims import Dim, atom, product
from fxprune.dims.unify import unify
from fxprune.rules.aten.movement import constant_pad
from fxprune.rules.facts import Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.traits import packet_of

aten = torch.ops.aten


def spatial(op: Op, sizes: tuple[int, ...]) -> Shape:
    """Return new pinned dims for spatial or sequence positions."""
    return op.fixed(sizes, "places (spatial or sequence positions) stay whole")


@rule(aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution, aten._convolution, zero="affine")
def convolution(op: Op) -> Shape:
    """`b (g i) *!, (g o) i *!, (g o)? -> b (g o) *!`; transposed, the weight is `(g i) o *!`.

    Spatial dims are passed through where the convolution is pointwise.
    """
    shape, weight = op.dims("input"), op.dims("weight")
    rank = len(weight) - 2
    lead, channels = shape[: len(shape) - rank - 1], shape[-rank - 1]
    groups = atom(op.integer("groups"))
    if op["transposed"]:
        inner, outer, out = _transposed(op, channels, weight, groups)
    else:
        inner, outer, out = _direct(op, channels, weight, groups)
    return _finish(op, (lead, shape[-rank:], weight[2:]), (groups, inner, outer, out))


@rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d, zero="affine")
def transposed(op: Op) -> Shape:
    """`b (g i) *, (g i) o *!, (g o)? -> b (g o) *!`."""
    shape, weight = op.dims("input"), op.dims("weight")
    rank = len(weight) - 2
    groups = atom(op.integer("groups"))
    inner, outer, out = _transposed(op, shape[-rank - 1], weight, groups)
    places = (shape[: len(shape) - rank - 1], shape[-rank:], weight[2:])
    return _finish(op, places, (groups, inner, outer, out))


def _direct(op: Op, channels: Dim, weight: Shape, groups: Dim) -> tuple[Dim, Dim, Dim]:
    outer = atom(weight[0].size // groups.size)
    op.unify(weight[0], product([groups, outer]))
    op.unify(channels, product([groups, weight[1]]))
    return weight[1], outer, weight[0]


def _transposed(op: Op, channels: Dim, weight: Shape, groups: Dim) -> tuple[Dim, Dim, Dim]:
    inner = atom(weight[0].size // groups.size)
    op.unify(weight[0], product([groups, inner]))
    op.unify(channels, weight[0])
    return inner, weight[1], product([groups, weight[1]])


def _finish(op: Op, places: tuple[Shape, Shape, Shape], roles: tuple[Dim, Dim, Dim, Dim]) -> Shape:
    lead, before, kernel = places
    groups, inner, outer, out = roles
    op.pin(kernel, "places (spatial or sequence positions) stay whole")
    after = op.out[len(lead) + 1 :]
    if not _is_pointwise(op, before, kernel, after):
        op.pin(before, "places (spatial or sequence positions) stay whole")
        before = spatial(op, after)
    if op.has("bias"):
        op.unify(out, op.dims("bias")[0])
    if inner.size > 1:
        op.contract(inner, "input", "weight")
    op.size(groups, "groups")
    op.role(groups, "groups" if inner.size > 1 and outer.size > 1 else "channels")
    op.role((inner, outer), "channels")
    return (*lead, out, *before)


def _is_pointwise(op: Op, before: Shape, kernel: Shape, after: tuple[int, ...]) -> bool:
    """Whether each position is read alone, as gMLP reads features: kernel size 1, no stride, and no padding (sizes are unchanged)."""
    points = all(dim.size == 1 for dim in kernel) and set(op.integers("stride")) <= {1}
    return points and tuple(dim.size for dim in before) == after


_POOLS_1 = (
    aten.avg_pool1d, aten.adaptive_avg_pool1d, aten.max_pool1d, aten.upsample_nearest1d, aten.upsample_linear1d,
    aten._upsample_nearest_exact1d, aten.reflection_pad1d, aten.replication_pad1d,
)  # fmt: skip
_POOLS_2 = (
    aten.max_pool2d, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten._adaptive_avg_pool2d,
    aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa,
    aten._upsample_nearest_exact2d, aten.reflection_pad2d, aten.replication_pad2d,
)  # fmt: skip
_POOLS_3 = (
    aten.max_pool3d, aten.avg_pool3d, aten.adaptive_avg_pool3d, aten._adaptive_avg_pool3d, aten.upsample_nearest3d,
    aten.upsample_trilinear3d, aten.reflection_pad3d, aten.replication_pad3d,
)  # fmt: skip
_SPATIAL = dict.fromkeys(_POOLS_1, 1) | dict.fromkeys(_POOLS_2, 2) | dict.fromkeys(_POOLS_3, 3)


@rule(*_SPATIAL, zero="keep")
def pool(op: Op) -> Shape:
    """Pin the last one, two or three dims, which are spatial, and pass through the others."""
    shape, rank = op.dims("self" if "self" in op.arguments else "input"), _SPATIAL[packet_of(op.node.target)]
    op.pin(shape[-rank:], "places (spatial or sequence positions) stay whole")
    return (*shape[:-rank], *spatial(op, op.out[-rank:]))


_RANKS = {
    aten.max_pool1d_with_indices: 1, aten.adaptive_max_pool1d: 1, aten.max_pool2d_with_indices: 2, aten.adaptive_max_pool2d: 2,
    aten.fractional_max_pool2d: 2, aten.max_pool3d_with_indices: 3, aten.adaptive_max_pool3d: 3, aten.fractional_max_pool3d: 3,
}  # fmt: skip


@rule(*_RANKS, zero="lose")
def pool_with_indices(op: Op) -> tuple[Shape, ...]:
    """Pin the spatial dims of values and indices; unify the random samples of a fractional pool with batch and channels."""
    shape, rank = op.dims("self"), _RANKS[packet_of(op.node.target)]
    lead = shape[:-rank]
    op.pin(shape[-rank:], "places (spatial or sequence positions) stay whole")
    if op.has("random_samples"):
        for dim, other in zip(reversed(lead), reversed(op.dims("random_samples")[:-1]), strict=False):
            op.unify(dim, other)
        op.pin(op.dims("random_samples")[-1], "one sample a place")
    result = (*lead, *spatial(op, op.outs[0][-rank:]))
    return result, result


@rule(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d, zero="keep")
def grid_sampler(op: Op) -> Shape:
    """Pin the spatial dims, at whose positions the grid reads values, and the grid's; batch and channels pass through."""
    shape, grid = op.dims("input"), op.dims("grid")
    op.pin((*shape[2:], *grid[1:]), "the grid says at which places values are read")
    return (op.unify(shape[0], grid[0]), shape[1], *spatial(op, op.out[2:]))


@rule(aten.pad, zero="value")
def pad(op: Op) -> Shape:
    """Add free parts of a Sum for constant padding; pin the dims that circular, reflect and replicate padding read by position."""
    if op["mode"] == "constant":
        return constant_pad(op)
    shape, count = op.dims("self"), len(op.integers("pad")) // 2
    op.pin(shape[-count:], f"{op['mode']} padding reads by position")
    return (*shape[:-count], *spatial(op, op.out[-count:]))


@rule(aten.pixel_shuffle, zero="keep")
def pixel_shuffle(op: Op) -> Shape:
    """Split channels as Product(c, r²); pin r² and the spatial dims."""
    *lead, channels, height, width = op.dims("self")
    op.pin((height, width), "places (spatial or sequence positions) stay whole")
    kept = atom(op.out[-3])
    block = spatial(op, (channels.size // kept.size,))
    unify(channels, product([kept, *block]), op.node.name)
    return (*lead, kept, *spatial(op, op.out[-2:]))


@rule(aten.pixel_unshuffle, zero="keep")
def pixel_unshuffle(op: Op) -> Shape:
    """Merge channels and r² pinned positions as Product(c, r²); pin the spatial dims."""
    *lead, channels, height, width = op.dims("self")
    op.pin((height, width), "places (spatial or sequence positions) stay whole")
    block = spatial(op, (op.out[-3] // channels.size,))
    return (*lead, product([channels, *block]), *spatial(op, op.out[-2:]))


@rule(aten.channel_shuffle, zero="keep")
def channel_shuffle(op: Op) -> Shape:
    """Reorder channels from Product(g, m) to Product(m, g)."""
    shape = op.dims("self")
    groups = atom(op.integer("groups"))
    inner = atom(shape[1].size // groups.size)
    unify(shape[1], product([groups, inner]), op.node.name)
    op.size(groups, "groups")
    return (shape[0], product([inner, groups]), *shape[2:])
