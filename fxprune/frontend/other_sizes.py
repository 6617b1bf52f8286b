"""Other sizes: a captured program must agree with its module wherever its sizes vary, not on the example inputs alone.

Beyond its guards a graph would answer in silence, too. A guard is *loose* where the graph was seen to fail there, or to compute what the
module does: then files, which can't hold conditions, may leave the sizes that it reads dynamic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial

from torch import nn

from fxprune.frontend.agreement import SAME, comparable, is_random, on_meta, seeded_outputs
from fxprune.frontend.module_call import uncached_kwargs, without_cache
from fxprune.frontend.trial_memory import fits_in_memory
from fxprune.ir import Point, Program, describe_error, difference, example_point
from fxprune.ir.example_inputs import (
    call_inputs,
    dynamic_axis_names,
    joined_axes,
    meets_guards,
    other_point,
)
from fxprune.ir.guards import Guard
from fxprune.ir.program import flatten_inputs
from fxprune.ir.torch_context import exporting

_ZERO_OR_ONE = re.compile(r"(!=|>=|>) [012]$")
"""Guards that torch has of its own accord, since it traces no size of 0 or 1 as dynamic; its exporters pass over them."""

_FAR = 8
"""From how many times a size of the example on the memory is counted before a trial."""

_FARTHEST = 1 << 20
"""The largest size that is tried: the inputs themselves would take too much."""

_NEAR = 33
"""How far from a size of the example those are searched at which a guard is broken."""


def differing_sizes(model: nn.Module, program: Program) -> dict[tuple[str, int], str]:
    """Return the dynamic sizes, (input, dimension), at other values of which the program is not the module, with what differs.

    What the module itself can't run on can't be compared. All sizes change at once; one after the other only where that shows a difference,
    or where the module can't run.
    """
    here = example_point(program)
    if not here or on_meta(model, program):
        return {}
    there = other_point(
        program, {axis: max(size, 2) + 1 + place for place, (axis, size) in enumerate(here.items())}
    )
    if there == here:
        return {}
    told = _difference(model, program, there)
    if told == "":
        return {}
    alone = {axes[0]: {**here, **{axis: there[axis] for axis in axes}} for axes in joined_axes(program)}
    why = {axis: _difference(model, program, point) for axis, point in alone.items() if point != here}
    found = {axis: each for axis, each in why.items() if each} or (dict.fromkeys(why, told) if told else {})
    return _sizes_of(
        program, {axis: found[axes[0]] for axes in joined_axes(program) if axes[0] in found for axis in axes}
    )


def _sizes_of(program: Program, why: Mapping[str, str]) -> dict[tuple[str, int], str]:
    """Return what was found of axes, by the sizes that they name."""
    names = dynamic_axis_names(program).items()
    return {(name, dim): why[axis] for name, dims in names for dim, axis in dims.items() if axis in why}


def _difference(model: nn.Module, program: Program, point: Point) -> str | None:
    """Return how the program differs from the module at a point ("": it doesn't); None where the module can't run there."""
    args, kwargs = call_inputs(program, point)
    full = {**kwargs, **uncached_kwargs(model, kwargs)}
    with exporting(model):
        try:
            with without_cache(model, kwargs):
                wanted = seeded_outputs(model, (args, full))
        except Exception:  # noqa: BLE001 - nobody promised that the model runs on such sizes
            return None
        try:
            got = seeded_outputs(program.graph_module, (args, kwargs))
        except Exception as error:  # noqa: BLE001 - whatever a graph raises that was traced for other sizes
            return f"it can't run at {dict(point)}: {describe_error(error)}"
        gap = difference(comparable(got), comparable(wanted))
        if gap <= SAME:
            return ""
        with without_cache(model, kwargs):
            if is_random(wanted, seeded_outputs(model, (args, full), 1)):
                return ""
    return f"it differs from the model by {gap:.2g} at {dict(point)}"


def with_loose_guards(model: nn.Module | None, program: Program) -> Program:
    """Return the program with those of its guards marked as loose beyond which it fails by itself, or agrees with its module."""
    free = {(name, dim) for name, dims in program.free_dims().items() for dim in dims}
    if not any(guard.sizes & free for guard in program.guards) or on_meta(model, program):
        return program
    harmless = cache(partial(_harmless, model, program))

    def is_loose(guard: Guard) -> bool:
        if model is None and not guard.where and _ZERO_OR_ONE.search(guard.text):
            return True
        return all(map(harmless, _beyond(program, guard)))

    marked = (
        replace(guard, loose=is_loose(guard)) if guard.sizes & free else guard for guard in program.guards
    )
    return program.replace(guards=tuple(marked))


def _harmless(model: nn.Module | None, program: Program, frozen: tuple[tuple[str, int], ...]) -> bool:
    """Return whether the graph fails at a point that a guard rules out, or computes there what the module does.

    Where that would take too much memory, nobody has seen it: False.
    """
    point = dict(frozen)
    if max(point.values()) > _FARTHEST:
        return False
    args, kwargs = call_inputs(program, point)
    if _is_far(program, point) and not fits_in_memory(program, flatten_inputs(program, args, kwargs)):
        return False
    with exporting(program.graph_module):
        try:
            seeded_outputs(program.graph_module, (args, kwargs))
        except Exception:  # noqa: BLE001 - a failure is no silent answer
            return True
    return model is not None and _difference(model, program, point) == ""


def _is_far(program: Program, point: Point) -> bool:
    """Return whether a point has a size that is many times that of the example: guards may name numbers of any size."""
    return any(point[axis] > _FAR * size for axis, size in example_point(program).items())


def _frozen(point: Point) -> tuple[tuple[str, int], ...]:
    return tuple(point.items())


def _beyond(program: Program, guard: Guard) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yield points at which a guard is broken: along each size that it reads, larger and smaller ones, all else as in the example."""
    here, names = example_point(program), dynamic_axis_names(program)
    read = {names[name][dim] for name, dim in guard.sizes if dim in names.get(name, {})}
    bounds = {int(number) + more for number in re.findall(r"\b\d+\b", guard.text) for more in (-1, 0, 1)}
    for axes in joined_axes(program):
        if read.isdisjoint(axes):
            continue
        size = here[axes[0]]
        near = {*range(1, 17), *range(size - _NEAR, size + _NEAR), size // 4, size // 3, size // 2}
        tried = {*near, *bounds, 2 * size, 2 * size + 1, 3 * size}
        for sizes in (
            sorted(n for n in tried if n > size),
            sorted((n for n in tried if 0 < n < size), reverse=True),
        ):
            points = ({**here, **dict.fromkeys(axes, other)} for other in sizes)
            outside = [point for point in points if not meets_guards(program, point, (guard,))]
            yield from dict.fromkeys(map(_frozen, (*outside[:1], *outside[-1:])))
