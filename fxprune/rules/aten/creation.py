"""Creation operators: fills have free dims, since only their size changes; dims of ranges, windows and random numbers are pinned."""

from __future__ import annotations

import torch

from fxprune.dims import atom
from fxprune.rules.facts import Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule(aten.zeros, aten.new_zeros, zero="zero")
@rule(aten.full, aten.new_full, zero="value")
@rule(aten.ones, aten.empty, aten.new_ones, aten.new_empty, zero="lose")
def fill(op: Op) -> Shape:
    """Give the result free dims: every position has the same (or an independent) value."""
    result = op.fresh()
    for place, dim in enumerate(result):
        op.size(dim, "size", place)
    return result


@rule(
    aten.arange, aten.linspace, aten.logspace, aten.eye, aten.scalar_tensor, aten.randperm, aten.tril_indices, aten.triu_indices,
    aten.range, aten.hann_window, aten.hamming_window, aten.bartlett_window, aten.blackman_window, aten.kaiser_window,
    aten.fft_fftfreq, aten.fft_rfftfreq, zero="lose",
)  # fmt: skip
def counted(op: Op) -> Shape:
    """Pin the result's dims: values depend on their position."""
    return op.fixed(op.out, f"values of {op.node.target} depend on their position")


@rule(aten.rand, aten.randn, aten.randint, zero="lose")
def random(op: Op) -> Shape:
    """Pin the result's dims: numbers are drawn by position, and with fewer positions, others would be drawn."""
    return op.fixed(op.out, "random numbers are drawn by position")


@rule(
    aten.rand_like, aten.randn_like, aten.randint_like, aten.bernoulli, aten.multinomial, aten.normal, aten.normal_, aten.uniform_,
    aten.bernoulli_, aten.poisson, aten.binomial, zero="lose",
)  # fmt: skip
def random_like(op: Op) -> Shape:
    """Pin the dims of operands and result: as many numbers are drawn as there are elements."""
    for node in op.tensors():
        op.pin(op.flow.dims[node], "random numbers are drawn by position")
    return random(op)


@rule(aten.affine_grid_generator, zero="lose")
def affine_grid(op: Op) -> Shape:
    """Pin all dims but the batch: the result is a grid of positions for each matrix."""
    batch, *matrix = op.dims("theta")
    rest = tuple(atom(size) for size in op.out[1:])
    op.pin((*matrix, *rest), f"values of {op.node.target} depend on their position")
    op.size(batch, "size", 0)
    return (batch, *rest)
