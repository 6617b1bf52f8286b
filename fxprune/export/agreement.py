"""Agreement of a file, run by its runtime, with the Program that it was written from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.export.random_values import NONE, Draws
from fxprune.ir import Feeds, Point, Program, copy_graph, feeds, inference, rebuild
from fxprune.ir.compare import relative_difference
from fxprune.ir.example_inputs import call_inputs
from fxprune.ir.program import flatten_inputs
from fxprune.ir.random_values import recorded
from fxprune.ir.tensors import rounding_step
from fxprune.runtimes.base import Outputs, Prepared

# Largest relative difference between ONNX Runtime and the Program, by the output's precision.
BARS = {np.dtype(np.float16): 1e-2}

BAR = 1e-4

# Where a rounding error in all weights moves a program's outputs further, its bar is that change times this: no runtime can do better.
ROUNDINGS = 4.0

# Where it moves them further than this, a difference shows nothing, and neither does agreement.
MOST_ROUNDING = 1e-2


class DifferenceError(ExportError):
    """A file computes something else than its program."""


def compare(
    program: Program,
    run: Prepared,
    points: Sequence[Point],
    title: str = "ONNX Runtime",
    draws: Draws = NONE,
) -> tuple[float, tuple[Point, ...]]:
    """Return the largest relative difference of a runtime's outputs from the program's, and the points at which the program can run.

    `draws` says which drawn values the file takes as inputs (see `fxprune.export.random_values`). DifferenceError where a difference is
    beyond its bar.
    """
    worst, compared = 0.0, []
    for point in points:
        expected, drawn = _outputs_and_draws(program, point, draws)
        if expected is None:
            continue
        found = run(feeds(program, point) | drawn)
        worst = max(worst, _difference(program, expected, found, (point, title), draws))
        compared.append(point)
    return worst, tuple(compared)


def _outputs_and_draws(program: Program, point: Point, draws: Draws) -> tuple[Outputs | None, Feeds]:
    """Return the program's own outputs, and the values that it drew; no outputs where it can't run at the point."""
    if draws == NONE:
        return _outputs(program, point), {}
    inputs = flatten_inputs(program, *call_inputs(program, point))
    try:
        outputs, values = recorded(program, (*draws.given, *draws.returned), inputs)
    except RuntimeError:
        return None, {}
    more = [values[name] for name in draws.returned]
    return _arrays([*outputs, *more]), {name: _array(values[node]) for node, name in draws.given.items()}


def _outputs(program: Program, point: Point) -> Outputs | None:
    """Return the program's own outputs; None where it can't run at the point (a table of positions ends)."""
    args, kwargs = call_inputs(program, point)
    try:
        with inference():
            return _arrays(pytree.tree_leaves(program(*args, **kwargs)))
    except RuntimeError:
        return None


def _arrays(leaves: Sequence[Any]) -> Outputs:
    return [_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _array(value: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.detach().cpu().numpy()
    return array


def _difference(
    program: Program, expected: Outputs, found: Outputs, where: tuple[Point, str], draws: Draws
) -> float:
    names, (point, title) = [*program.output_names(), *draws.returned], where
    if len(expected) != len(found):
        raise DifferenceError(f"the ONNX file has {len(found)} outputs, the program {len(expected)}: {names}")
    worst = 0.0
    for name, ours, theirs in zip(names, expected, found, strict=True):
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise DifferenceError(
                f"output {name!r} is {theirs.dtype}{list(theirs.shape)} in {title}, {ours.dtype}{list(ours.shape)} here"
            )
        difference, bar = _relative(ours, theirs), BARS.get(ours.dtype, BAR)
        if difference > bar:
            bar = max(bar, _bar_of_rounding(_rounding(program, expected, point, draws), name, point))
        if not difference <= bar:
            raise DifferenceError(
                f"output {name!r} differs by {difference:.1e} between {title} and the program"
                f" at {dict(point)}; the bar is {bar:.0e}"
            )
        worst = max(worst, difference)
    return worst


def _bar_of_rounding(rounding: float, name: str, point: Point) -> float:
    if rounding > MOST_ROUNDING:
        raise ExportError(
            f"nothing proven about the file: a rounding step in the weights alone moves output {name!r} by {rounding:.1e}"
            f" at {dict(point)} (a comparison says something up to {MOST_ROUNDING:.0e})"
        )
    return ROUNDINGS * rounding


def _rounding(program: Program, expected: Outputs, point: Point, draws: Draws) -> float:
    """Return how far the outputs move when every weight moves by a rounding step, up or down at random."""
    random = torch.Generator().manual_seed(0)
    moved = {name: rounding_step(value, random) for name, value in program.tensors().items()}
    again, _ = _outputs_and_draws(rebuild(program, copy_graph(program), moved), point, draws)
    return max(map(_relative, expected, again or expected), default=0.0)


def _relative(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    return relative_difference(torch.tensor(found), torch.tensor(expected))
