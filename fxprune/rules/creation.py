"""Creation: fills have free dims, for only their size changes; counts and random numbers by position stay whole."""

from __future__ import annotations

import torch

from fxprune.rules.op import Op, Shape
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule(aten.zeros, aten.new_zeros, zero="zero")
def zeros(op: Op) -> Shape:
    """Zeros of any size are zeros."""
    return fill(op)


@rule(
    aten.ones,
    aten.full,
    aten.empty,
    aten.new_ones,
    aten.new_full,
    aten.new_empty,
    aten.rand,
    aten.randn,
    zero="lose",
)
def fill(op: Op) -> Shape:
    """Every position holds the same (or an independent) value."""
    result = op.fresh()
    for place, dim in enumerate(result):
        op.size(dim, "size", place)
    return result


@rule(
    aten.arange, aten.linspace, aten.logspace, aten.eye, aten.scalar_tensor, aten.randperm, aten.tril_indices, aten.triu_indices,
    aten.range, aten.hann_window, aten.hamming_window, zero="lose",
)  # fmt: skip
def counted(op: Op) -> Shape:
    """The values tell the position."""
    result = op.fresh()
    op.pin(result, f"{op.node.target} counts positions")
    return result
