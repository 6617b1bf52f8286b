"""Creation: fills have free dims, for only their size changes; counts and random numbers by position stay whole."""

from __future__ import annotations

import torch

from fxprune.dims import atom
from fxprune.rules.facts import Shape
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule(aten.zeros, aten.new_zeros, zero="zero")
def _zeros(op: Op) -> Shape:
    """Zeros of any size are zeros."""
    return fill(op)


@rule(
    aten.ones,
    aten.full,
    aten.empty,
    aten.new_ones,
    aten.new_full,
    aten.new_empty,
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
    aten.range, aten.hann_window, aten.hamming_window, aten.bartlett_window, aten.blackman_window, aten.kaiser_window,
    aten.fft_fftfreq, aten.fft_rfftfreq, zero="lose",
)  # fmt: skip
def counted(op: Op) -> Shape:
    """The values tell the position."""
    result = op.fresh()
    op.pin(result, f"{op.node.target} counts positions")
    return result


@rule(aten.rand, aten.randn, aten.randint, zero="lose")
def random(op: Op) -> Shape:
    """Numbers are drawn by position: with fewer positions, others would be drawn."""
    result = op.fresh()
    op.pin(result, "random numbers are drawn by position")
    return result


@rule(
    aten.rand_like,
    aten.randn_like,
    aten.randint_like,
    aten.bernoulli,
    aten.multinomial,
    aten.normal,
    aten.normal_,
    aten.uniform_,
    aten.bernoulli_,
    aten.poisson,
    aten.binomial,
    zero="lose",
)
def random_like(op: Op) -> Shape:
    """As many random numbers as its operand has elements."""
    for node in op.tensors():
        op.pin(op.flow.dims[node], "random numbers are drawn by position")
    return random(op)


@rule(aten.affine_grid_generator, zero="lose")
def affine_grid(op: Op) -> Shape:
    """A grid of positions for each matrix of the batch."""
    batch, *matrix = op.dims("theta")
    rest = tuple(atom(size) for size in op.out[1:])
    op.pin((*matrix, *rest), f"{op.node.target} counts positions")
    op.size(batch, "size", 0)
    return (batch, *rest)
