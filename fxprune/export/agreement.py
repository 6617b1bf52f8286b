"""Agreement of a file, run by its runtime, with the Program that it was written from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.ir import Point, Program, copy_graph, feeds, inference, rebuild
from fxprune.ir.compare import relative_difference
from fxprune.ir.example_inputs import call_inputs
from fxprune.ir.tensors import rounding_step
from fxprune.runtimes.base import Outputs, Prepared

# Largest relative difference between ONNX Runtime and the Program, by the output's precision.
BARS = {np.dtype(np.float16): 1e-2}

BAR = 1e-4

# Where a rounding error in all weights moves a program's outputs further, its bar is that change times this: no runtime can do better.
ROUNDINGS = 4.0


def compare(
    program: Program, run: Prepared, points: Sequence[Point], title: str = "ONNX Runtime"
) -> tuple[float, tuple[Point, ...]]:
    """Return the largest relative difference of a runtime's outputs from the program's, and the points at which the program can run.

    ExportError where a difference is beyond its bar.
    """
    worst, compared = 0.0, []
    for point in points:
        expected = _outputs(program, point)
        if expected is None:
            continue
        worst = max(worst, _difference(program, expected, run(feeds(program, point)), (point, title)))
        compared.append(point)
    return worst, tuple(compared)


def _outputs(program: Program, point: Point) -> Outputs | None:
    """Return the program's own outputs; None where it can't run at the point (a table of positions ends)."""
    args, kwargs = call_inputs(program, point)
    try:
        with inference():
            leaves = pytree.tree_leaves(program(*args, **kwargs))
    except RuntimeError:
        return None
    return [leaf.detach().cpu().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _difference(
    program: Program, expected: Outputs, found: Outputs, where: tuple[Point, str] = ({}, "ONNX Runtime")
) -> float:
    names, (point, title) = program.output_names(), where
    if len(expected) != len(found):
        raise ExportError(f"the ONNX file has {len(found)} outputs, the program {len(expected)}: {names}")
    worst = 0.0
    for name, ours, theirs in zip(names, expected, found, strict=True):
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise ExportError(
                f"output {name!r} is {theirs.dtype}{list(theirs.shape)} in {title}, {ours.dtype}{list(ours.shape)} here"
            )
        difference, bar = _relative(ours, theirs), BARS.get(ours.dtype, BAR)
        if difference > bar:
            bar = max(bar, ROUNDINGS * _rounding(program, expected, point))
        if not difference <= bar:
            raise ExportError(
                f"output {name!r} differs by {difference:.1e} between {title} and the program"
                f" at {dict(point)}; the bar is {bar:.0e}"
            )
        worst = max(worst, difference)
    return worst


def _rounding(program: Program, expected: Outputs, point: Point) -> float:
    """Return how far the outputs move when every weight moves by a rounding step, up or down at random."""
    random = torch.Generator().manual_seed(0)
    moved = {name: rounding_step(value, random) for name, value in program.tensors().items()}
    again = _outputs(rebuild(program, copy_graph(program), moved), point) or expected
    return max(map(_relative, expected, again), default=0.0)


def _relative(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    return relative_difference(torch.tensor(found), torch.tensor(expected))
