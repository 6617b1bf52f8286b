"""Normalisation: statistics run over a dim, so removing units of it changes the values of the others (inexact)."""

from __future__ import annotations

import torch

from fxprune.dims import Dim, atom, product
from fxprune.dims.dim import total
from fxprune.dims.unify import unify
from fxprune.rules.facts import Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule(aten.layer_norm, aten.rms_norm, zero="lose")
def layer_norm(op: Op) -> Shape:
    """Mark the last dims as normalised over (inexact); unify weight and bias with them."""
    shape = op.dims("input")
    normalized = shape[len(shape) - len(op.integers("normalized_shape")) :]
    _over(op, normalized, "normalisation")
    for name in ("weight", "bias"):
        if op.has(name):
            op.unify_all(normalized, op.dims(name))
    for place, dim in enumerate(normalized):
        op.size(dim, "normalized_shape", place)
    return shape


def _over(op: Op, dims: Shape, what: str) -> None:
    op.inexact(dims, f"{what} over it at {op.node.name}: its statistics change")
    op.role(dims, "norm")


@rule(aten._fused_rms_norm, zero="lose")
def fused_rms_norm(op: Op) -> tuple[Shape, ...]:
    """Apply `layer_norm`, with a second result rstd."""
    shape, count = layer_norm(op), len(op.integers("normalized_shape"))
    return shape, (*shape[: len(shape) - count], *(atom(1) for _ in range(count)))


@rule(aten.native_layer_norm, zero="lose")
def native_layer_norm(op: Op) -> tuple[Shape, ...]:
    """Apply `layer_norm`, with further results mean and rstd."""
    shape = layer_norm(op)
    kept = len(shape) - len(op.integers("normalized_shape"))
    statistic = (*shape[:kept], *(atom(1) for _ in shape[kept:]))
    return shape, statistic, statistic


@rule(aten.group_norm, zero="lose")
def group_norm(op: Op) -> Shape:
    """Split channels as Product(groups, m): a whole group can be removed exactly, m is normalised over."""
    shape = op.dims("input")
    groups = atom(op.integer("num_groups"))
    inner = atom(shape[1].size // groups.size)
    op.unify(shape[1], product([groups, inner]))
    op.size(groups, "num_groups")
    _over(op, (inner, *shape[2:]), "group normalisation")
    for name in ("weight", "bias"):
        if op.has(name):
            op.unify(shape[1], op.dims(name)[0])
    return shape


@rule(aten.batch_norm, aten.instance_norm, zero="lose")
def batch_norm(op: Op) -> Shape:
    """Unify weight, bias and running statistics with dim 1; with statistics of the input, the other dims are normalised over."""
    shape = op.dims("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if op.has(name):
            op.unify(shape[1], op.dims(name)[0])
    op.role(shape[1], "channels")
    if op["training"] or op["use_input_stats"] or not op.has("running_mean"):
        _over(op, (shape[0], *shape[2:]), "normalisation")
    return shape


@rule(aten._native_batch_norm_legit_no_training, zero="lose")
def native_batch_norm(op: Op) -> tuple[Shape, ...]:
    """Apply `batch_norm` in inference, with two empty further results."""
    return batch_norm(op), (atom(0),), (atom(0),)


@rule(aten.softmax, aten._softmax, zero="value")
def softmax(op: Op) -> Shape:
    """Record a choice among the outputs of a weight (a router's logits), or mark the dim as inexact.

    The share of a removed output goes to the others.
    """
    shape = op.dims("self")
    place = op.integer("dim") % max(1, len(shape))
    if op["self"] in op.flow.routing.logits and place == len(shape) - 1:
        op.choose(place, float("-inf"))
    elif shape:
        shared(op, shape[place])
    return shape


def shared(op: Op, dim: Dim) -> None:
    """Mark a dim over which a softmax runs as inexact."""
    op.inexact(dim, f"softmax over it at {op.node.name}: the shares of the others change")


@rule(aten.log_softmax, aten._log_softmax, aten._safe_softmax, zero="lose")
def log_softmax(op: Op) -> Shape:
    """Mark the normalised dim as inexact."""
    shape = op.dims("self")
    shared(op, shape[op.integer("dim") % max(1, len(shape))])
    return shape


@rule(aten._weight_norm, zero="self")
def weight_norm(op: Op) -> Shape:
    """Mark all dims but `dim` (-1: none) as normalised over (inexact), for g·v/‖v‖; g lies along `dim`, or is one number."""
    shape, lengths, given = op.dims("v"), op.dims("g"), op.integer("dim")
    if lengths:
        op.unify_all(shape, lengths)
    others = [dim for i, dim in enumerate(shape) if given == -1 or i != given % len(shape)]
    op.inexact(others, f"the weight is normalised over it at {op.node.name}")
    return shape


@rule(aten.glu, zero="lose")
def glu(op: Op) -> Shape:
    """Split the dim as Sum(r, r): the second half gates the first."""
    shape = list(op.dims("self"))
    place = op.integer("dim") % len(shape)
    half: Dim = atom(shape[place].size // 2)
    unify(shape[place], total([half, half]), op.node.name)
    shape[place] = half
    return tuple(shape)
