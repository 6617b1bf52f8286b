"""More inputs for a proof, made from the example: values drawn anew, and other sizes along dynamic axes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fxprune.ir import Program, example_point, run_example
from fxprune.ir.example_inputs import call_inputs, other_point
from fxprune.ir.signature import with_inputs


def input_variants(program: Program) -> list[Program]:
    """Return the program with its example inputs, then with others that it also runs on.

    Floating and complex inputs are drawn anew with the mean and spread of the example, integers are shuffled along with their rows, and
    dynamic axes have other sizes, where the guards allow them. What can't be drawn safely stays: flags, masks of two values, infinities.
    Inputs that may shrink have no variants.
    """
    if program.free_inputs:
        return [program]
    return [program, *(each for each in _candidates(program) if _runs(each))]


def _candidates(program: Program) -> Iterator[Program]:
    for seed in (1, 2):
        yield drawn(program, seed)
    here = example_point(program)
    there = other_point(program, {axis: size + 1 + place for place, (axis, size) in enumerate(here.items())})
    if there != here:
        args, kwargs = call_inputs(program, there)
        yield drawn(program.replace(args=args, kwargs=kwargs), 3)


def drawn(program: Program, seed: int) -> Program:
    """Return the program with example inputs of the same sizes and kinds, and other values."""
    random = torch.Generator().manual_seed(seed)
    names = [node.name for node in program.placeholders()]
    pairs = zip(names, program.flat_inputs(), strict=True)
    made = {name: _drawn(value, random) for name, value in pairs if isinstance(value, Tensor)}
    return with_inputs(program, made)


def _drawn(value: Tensor, random: torch.Generator) -> Tensor:
    if value.device.type == "meta" or value.numel() == 0:
        return value
    if value.is_complex():
        return torch.complex(_drawn(value.real, random), _drawn(value.imag, random))
    # float8 and its kin can be widened, and little else.
    wide = value.double() if value.is_floating_point() else value
    few = wide.unique().numel() <= 2
    if value.is_floating_point():
        if not bool(wide.isfinite().all()) or (few and value.numel() > 2 and bool(wide.any())):
            return value
        spread = wide.std() if value.numel() > 1 else wide.abs().squeeze()
        noise = torch.randn(value.shape, generator=random, dtype=torch.float64)
        return (wide.mean() + noise * (spread if float(spread) > 0 else 1.0)).to(value)
    if few or value.dtype == torch.bool:
        return value
    order = torch.randperm(value.numel(), generator=random).to(value.device)
    return value.flatten()[order].reshape(value.shape)


def _runs(program: Program) -> bool:
    """Return whether the program runs on its example inputs: those that were drawn may lie outside of what it takes."""
    try:
        run_example(program)
    except Exception:  # noqa: BLE001 - whatever the program raises on inputs that nobody promised to be right
        return False
    return True


def with_inputs_of(program: Program, variant: Program) -> Program:
    """Return a program with the example inputs of a variant."""
    return program.replace(args=variant.args, kwargs=variant.kwargs)
