"""Inventory of a program: its layers with their parameters, and its axes with their sizes, before and after, as plain data."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from fxprune.analysis import Axis, Region, analyze
from fxprune.analysis.layer_sizes import LayerSizes, RemainingCount, count_layer_sizes
from fxprune.ir import Program, Selection
from fxprune.ir.selection import is_dependent

SHOWN = 64
"""Largest size of an axis that is listed unit by unit."""


def inventory(program: Program, slim: Program, selection: Selection) -> dict[str, Any]:
    """Return `layers` and `axes` for a report.

    A layer: its name, whether it is removed, parameters before and after. An axis: name, role, layer (empty where it lies in no single
    one), sizes before and after, `kept`, the units that are left, where they are few, and `dims`, where heads keep different numbers.
    `after` is None where it can't be read from the slim program. For ranks, which are new, `before` is the largest possible rank.
    """
    before, after = analyze(program), analyze(slim)
    found = [region for region in before.regions if region.unit == "layer" and not region.why]
    sizes = _sizes(count_layer_sizes(program, slim, selection.removed))
    axes = [_axis(axis, found, sizes.get(axis.name), selection) for axis in before.axes]
    known = {axis.name for axis in before.axes}
    new = [axis for axis in after.axes if axis.role == "rank" and axis.name not in known]
    axes += [_rank(axis, found, slim) for axis in new]
    return {"layers": _layers(found, program, slim, selection.removed), "axes": axes}


def _layers(
    found: Sequence[Region], program: Program, slim: Program, removed: Collection[str]
) -> list[dict[str, Any]]:
    """Return the layers in order, then what lies in none of them, under an empty name."""
    rest = {name for name, value in program.tensors().items() if isinstance(value, nn.Parameter)}
    rows = []
    for region in found:
        rest -= set(region.parameters)
        rows.append(_layer(region.name, module_paths(region.parameters), program, slim))
        rows[-1]["removed"] = region.name in removed or not rows[-1]["parameters"]["after"]
    inside = set().union(*(module_paths(region.parameters) for region in found))
    outside = _layer("", module_paths(rest) - inside, program, slim)
    return [*rows, outside] if outside["parameters"]["before"] else rows


def _layer(name: str, within: Collection[str], program: Program, slim: Program) -> dict[str, Any]:
    counts = {"before": _parameters(program, within), "after": _parameters(slim, within)}
    return {"name": name, "removed": False, "parameters": counts}


def _parameters(program: Program, within: Collection[str]) -> int:
    """Return the number of parameters of some modules; a shared one counts once."""
    found = {
        id(value): value.numel()
        for name, value in program.tensors().items()
        if isinstance(value, nn.Parameter) and name.rpartition(".")[0] in within
    }
    return sum(found.values())


def module_paths(parameters: Collection[str]) -> set[str]:
    """Return the modules that parameters of these names lie in."""
    return {name.rpartition(".")[0] for name in parameters}


def _sizes(found: LayerSizes) -> dict[str, RemainingCount]:
    """Return what is left of each axis, by name."""
    inside = [size for layer in found.layers for size in layer.sizes]
    return {size.axis: size.after for size in (*inside, *found.rest)}


def _axis(axis: Axis, layers: Sequence[Region], left: RemainingCount, selection: Selection) -> dict[str, Any]:
    size, kept = sum(left) if isinstance(left, list) else left, selection.axes.get(axis.name)
    told = _entry(axis, layers, axis.size, size)
    listed = kept is not None and not is_dependent(kept) and axis.size <= SHOWN and len(kept) == size
    more = {"dims": left} if isinstance(left, list) else {"kept": list(kept or ())} if listed else {}
    return told | more


def _rank(axis: Axis, layers: Sequence[Region], slim: Program) -> dict[str, Any]:
    """Return the entry of a rank that the original did not have."""
    tensors = slim.tensors()
    own = [(tensors[member.name], member.dim) for member in axis.members if member.learned]
    most = min(value.numel() // value.shape[dim] for value, dim in own)
    return _entry(axis, layers, max(most, axis.size), axis.size)


def _entry(axis: Axis, layers: Sequence[Region], before: int, after: int | None) -> dict[str, Any]:
    told = {"name": axis.name, "role": axis.role, "layer": layer_of(axis, layers)}
    return {**told, "before": before, "after": after, "exact": axis.exact, "meaning": axis.meaning}


def layer_of(axis: Axis, layers: Sequence[Region]) -> str:
    """Return the one layer that all parameters of an axis lie in; empty where there is none, or more than one."""
    own = module_paths([member.name for member in axis.members if member.learned])
    found = [region.name for region in layers if own <= module_paths(region.parameters)]
    return found[0] if len(found) == 1 else ""
