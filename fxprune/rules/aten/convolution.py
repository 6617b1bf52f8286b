"""Convolutions: contractions over channels, Product(groups, m) where grouped; shuffles and samplers of channels and places."""

from __future__ import annotations

import torch

from fxprune.dims import Dim, atom, product
from fxprune.dims.unify import unify
from fxprune.rules.aten.movement import constant_pad
from fxprune.rules.aten.windows import WHY, are_points, through, unpadded
from fxprune.rules.facts import Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule(aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution, aten._convolution, zero="affine")
def convolution(op: Op) -> Shape:
    """`b (g i) *!, (g o) i *!, (g o)? -> b (g o) *!`; transposed, the weight is `(g i) o *!`.

    A spatial dim passes through where the kernel is one place wide.
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
    op.pin(kernel, WHY)
    after = through(op, before, op.out[len(lead) + 1 :], are_points(op, [dim.size for dim in kernel]))
    if op.has("bias"):
        op.unify(out, op.dims("bias")[0])
    if inner.size > 1:
        op.contract(inner, "input", "weight")
    op.size(groups, "groups")
    op.role(groups, "groups" if inner.size > 1 and outer.size > 1 else "channels")
    op.role((inner, outer), "channels")
    return (*lead, out, *after)


@rule(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d, zero="keep")
def grid_sampler(op: Op) -> Shape:
    """Pin the spatial dims, at whose positions the grid reads values, and the grid's; batch and channels pass through."""
    shape, grid = op.dims("input"), op.dims("grid")
    op.pin((*shape[2:], *grid[1:]), "the grid says at which places values are read")
    return (op.unify(shape[0], grid[0]), shape[1], *op.fixed(op.out[2:], WHY))


@rule(aten.pad, zero="value")
def pad(op: Op) -> Shape:
    """Add free parts of a Sum for constant padding; pin the dims that circular, reflect and replicate padding pad with their own values."""
    if op["mode"] == "constant":
        return constant_pad(op)
    shape, count = op.dims("self"), len(op.integers("pad")) // 2
    return (*shape[:-count], *unpadded(op, shape[-count:], op.integers("pad")))


@rule(aten.pixel_shuffle, zero="keep")
def pixel_shuffle(op: Op) -> Shape:
    """Split channels as Product(c, r²); pin r² and the spatial dims."""
    *lead, channels, height, width = op.dims("self")
    op.pin((height, width), WHY)
    kept = atom(op.out[-3])
    block = op.fixed((channels.size // kept.size,), WHY)
    unify(channels, product([kept, *block]), op.node.name)
    return (*lead, kept, *op.fixed(op.out[-2:], WHY))


@rule(aten.pixel_unshuffle, zero="keep")
def pixel_unshuffle(op: Op) -> Shape:
    """Merge channels and r² pinned positions as Product(c, r²); pin the spatial dims."""
    *lead, channels, height, width = op.dims("self")
    op.pin((height, width), WHY)
    block = op.fixed((op.out[-3] // channels.size,), WHY)
    return (*lead, product([channels, *block]), *op.fixed(op.out[-2:], WHY))


@rule(aten.channel_shuffle, zero="keep")
def channel_shuffle(op: Op) -> Shape:
    """Reorder channels from Product(g, m) to Product(m, g)."""
    shape = op.dims("self")
    groups = atom(op.integer("groups"))
    inner = atom(shape[1].size // groups.size)
    unify(shape[1], product([groups, inner]), op.node.name)
    op.size(groups, "groups")
    return (shape[0], product([inner, groups]), *shape[2:])
