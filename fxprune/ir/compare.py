"""Comparison of outputs: relative difference, and tolerances by dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.errors import VerifyError
from fxprune.ir.interpreter import Recorder
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
    return compare_outputs(got, expected).relative


@dataclass(frozen=True)
class OutputAgreement:
    """How far outputs are apart: the largest relative difference and its bar, and how many finite floating numbers were compared.

    Of several outputs it is the one that comes nearest to its own bar, or exceeds it most: each is held to that of its dtype.
    """

    relative: float
    bar: float
    compared: int

    @property
    def holds(self) -> bool:
        """Whether the difference is within the bar."""
        return self.relative <= self.bar


def compare_outputs(
    got: Sequence[Tensor], expected: Sequence[Tensor], noise: Sequence[Tensor] = ()
) -> OutputAgreement:
    """Compare outputs pair by pair; infinitely far where their numbers differ. `noise` is as in `relative_difference`."""
    if len(got) != len(expected):
        return OutputAgreement(math.inf, 0.0, 0)
    steps: Sequence[Tensor | None] = noise or [None] * len(got)
    found = [
        (relative_difference(one, other, step), TOLERANCES.get(other.dtype, 0.0))
        for one, other, step in zip(got, expected, steps, strict=True)
    ]
    relative, bar = max(found, key=lambda pair: pair[0] / max(pair[1], 1e-300), default=(0.0, 0.0))
    return OutputAgreement(relative, bar, sum(map(_comparable, got, expected)))


def relative_difference(got: Tensor, expected: Tensor, noise: Tensor | None = None) -> float:
    """The largest |got − expected| over a scale, element by element (see `scale_of`); infinite where shape or dtype differ.

    Equal infinities, and NaN in both, count as 0; NaN or an infinity that only one of them has, as infinite. `noise` is a difference in
    the shape of the outputs that does not count, for it is known to be rounding.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return math.inf
    if not got.numel() or torch.equal(got, expected):
        return 0.0
    wide = torch.complex128 if got.is_complex() else torch.float64
    one, other = got.to(wide), expected.to(wide)
    same = (one == other) | (one.isnan() & other.isnan())
    gap = torch.where(same, 0.0, (one - other).abs()).nan_to_num(math.inf, posinf=math.inf)
    if noise is not None:
        gap = (gap - noise).clamp_min(0.0)
    return float((gap / scale_of(other)).max())


def moved_by(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """How far outputs moved: the root mean square of their change over their own, of the output that moved most.

    Unlike `difference` it is of an output as a whole: an element next to zero says little about it. What isn't finite has no part.
    Infinite where shapes or dtypes differ, and where zeros or numbers became something else: all of an output, or finite ones infinite.
    """
    if [one.shape for one in got] != [other.shape for other in expected]:
        return math.inf
    return max(map(_moved_by, got, expected), default=0.0)


def _moved_by(got: Tensor, expected: Tensor) -> float:
    wide = torch.complex128 if got.is_complex() or expected.is_complex() else torch.float64
    one, other = got.to(wide), expected.to(wide)
    known = one.isfinite() & other.isfinite()
    if got.dtype != expected.dtype or bool((one.isfinite() != other.isfinite()).any()):
        return math.inf
    change, size = (float(value[known].abs().square().sum().sqrt()) for value in (one - other, other))
    return (change / size if size else math.inf) if change else 0.0


_SLICE = 8
"""The fewest elements of a slice (a channel, a position) that has a median of its own."""


def scale_of(expected: Tensor) -> Tensor:
    """The magnitude that errors are compared with, element by element, float64: of the element itself, or one that is usual around it.

    What is usual is the smallest of the medians of all elements and of the slices that it lies in (its channel, its position), so that a
    large constant (a mask, a sentinel) sets the scale for none but itself. Zeros, infinities and NaN have no part in a median, nor do
    repetitions in that of all; a slice of which half is the same has none: it is one sample, which may be next to zero by chance.
    """
    size = expected.abs().to(torch.float64)
    counts = size.isfinite() & (size > 0)
    if not counts.any():
        return torch.full_like(size, 1e-30)
    usual = size[counts].unique().median().expand(size.shape)
    marked = torch.where(counts, size, math.nan)
    for dim, length in enumerate(size.shape):
        if size.numel() >= _SLICE * length:
            found = _slice_medians(marked.movedim(dim, 0).flatten(1))
            usual = torch.minimum(usual, found.reshape(-1, *(1,) * (size.ndim - 1 - dim)))
    own = torch.where(size.isfinite(), size, 0.0)
    return torch.maximum(own, usual).clamp_min(1e-30)


def _slice_medians(slices: Tensor) -> Tensor:
    """The median of each row, without NaN; infinite where half of a row is the same, or where nothing is left."""
    medians = slices.nanmedian(1).values
    alike = ((slices - medians[:, None]).abs() <= 0.1 * medians[:, None]).sum(1)
    varied = 2 * alike < (~slices.isnan()).sum(1)
    return torch.where(varied, medians, math.inf).nan_to_num(math.inf)


def _comparable(got: Tensor, expected: Tensor) -> int:
    """The number of places where both have a finite floating number."""
    if got.shape != expected.shape or not (got.is_floating_point() or got.is_complex()):
        return 0
    return int((got.isfinite() & expected.isfinite()).sum())


def every_value(program: Program, inputs_of: Program) -> Iterator[tuple[str, Any]]:
    """The values of a run on example inputs, as (node name, value); up to the failing node where one fails.

    The inputs are those of `inputs_of`, unless the program has free inputs. VerifyError where the first node fails.
    """
    recorder = Recorder(program, copies=True)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            recorder.run_flat((program if program.free_inputs else inputs_of).flat_inputs())
    except Exception as error:  # the values up to the failing node are the result
        if not recorder.values:
            raise VerifyError(f"the program does not run: {error}") from error
    yield from ((node.name, value) for node, value in recorder.values.items())
