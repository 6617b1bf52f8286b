"""Comparison of outputs: relative difference, and tolerances by dtype."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.ir.program import Program

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""The largest relative difference that rounding explains, by floating type."""


def run_example(program: Program, inputs_of: Program | None = None) -> list[Tensor]:
    """The tensor outputs of a program on example inputs, with a fixed seed for random operators.

    The inputs are those of `inputs_of` where it is given, unless the program has free inputs.
    """
    # An input that shrank has examples of its own.
    source = program if program.free_inputs else inputs_of or program
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = program(*source.args, **source.kwargs)
    return [value for value in pytree.tree_leaves(outputs) if isinstance(value, Tensor)]


def tolerance(outputs: Iterable[Tensor]) -> float:
    """The largest relative difference that rounding explains: that of the coarsest floating type among the outputs."""
    return max((TOLERANCES.get(value.dtype, 0.0) for value in outputs), default=0.0)


def difference(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest `relative_difference` over the outputs, pair by pair; 0 where there are none, infinite where their numbers differ."""
    if len(got) != len(expected):
        return float("inf")
    return max(map(relative_difference, got, expected), default=0.0)


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """The largest |got − expected| over the largest finite |expected|; infinite where shape or dtype differ.

    Equal infinities, and NaN in both, count as 0; NaN or an infinity that only one of them has, as infinite.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return float("inf")
    if not got.numel() or torch.equal(got, expected):
        return 0.0
    wide = torch.complex128 if got.is_complex() else torch.float64
    one, other = got.to(wide), expected.to(wide)
    same = (one == other) | (one.isnan() & other.isnan())
    gap = torch.where(same, 0.0, (one - other).abs()).nan_to_num(float("inf"), posinf=float("inf")).max()
    finite = other.abs()[other.isfinite()]
    scale = finite.max() if finite.numel() else torch.ones(())
    return float(gap / scale.clamp_min(1e-30))
