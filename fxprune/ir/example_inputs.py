"""Example inputs at given sizes: the examples of a Program, repeated or cut along its dynamic axes.

A *point* gives sizes to the named dynamic axes: `{"batch": 8, "length": 64}`. The names are the ones in the
ONNX file: the first dimension of an input is `batch`, the last of a token sequence or the second of a feature
sequence `length`, the last two of an image `height` and `width`. Inputs at a point repeat the examples, so
that values stay in their range.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fxprune.ir.guards import Guard, broken
from fxprune.ir.program import Program
from fxprune.ir.signature import put_inputs

Point = Mapping[str, int]
Feeds = dict[str, np.ndarray[Any, Any]]


def dynamic_axis_names(program: Program) -> dict[str, dict[int, str]]:
    """The names of the dynamic axes of every input: input name → dimension → axis name.

    Dimensions with the same preferred name share it only where their example sizes agree.
    """
    taken: dict[str, int] = {}
    free = program.free_dims()
    found: dict[str, dict[int, str]] = {}
    for name, tensor in inputs(program).items():
        dims = free.get(name, ())
        found[name] = {dim: _claim(taken, name, _wanted(tensor, dim), tensor.shape[dim]) for dim in dims}
    return found


def inputs(program: Program, point: Point | None = None) -> dict[str, torch.Tensor]:
    """The tensor inputs by name: the examples, or the examples repeated or cut to a point."""
    pairs = zip(_names(program), program.flat_inputs(), strict=True)
    examples = {name: value for name, value in pairs if isinstance(value, torch.Tensor)}
    if not point:
        return examples
    names = dynamic_axis_names(program)
    return {name: _resize(tensor, names[name], point) for name, tensor in examples.items()}


def call_inputs(program: Program, point: Point | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) that call the program at a point."""
    return put_inputs(program, inputs(program, point))


def feeds(program: Program, point: Point | None = None) -> Feeds:
    """The program's inputs at a point in the form that ONNX Runtime takes: NumPy arrays by name."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in inputs(program, point).items()}


def example_point(program: Program) -> dict[str, int]:
    """The point of the example inputs: the size of each dynamic axis, by name."""
    names = dynamic_axis_names(program)
    tensors = inputs(program)
    return {axis: tensors[name].shape[dim] for name, dims in names.items() for dim, axis in dims.items()}


def point_with(program: Program, **sizes: int) -> dict[str, int]:
    """The point of the example inputs, with other sizes for some axes; names that the program does not have are ignored."""
    return {axis: sizes.get(axis, size) for axis, size in example_point(program).items()}


def meets_guards(program: Program, point: Point, guards: Sequence[Guard] | None = None) -> bool:
    """Whether inputs at a point meet some guards: those of the program, unless others are given."""
    names = dynamic_axis_names(program)
    pairs = zip([node.name for node in program.placeholders()], program.flat_inputs(), strict=True)
    values = {name: _sized(value, names.get(name, {}), point) for name, value in pairs}
    return broken(program.input_guards() if guards is None else guards, values) is None


def other_point(program: Program, wanted: Point, fixed: Collection[str] = ()) -> dict[str, int]:
    """A point that differs from the example's along every axis that the guards let vary; at the `wanted` sizes where they allow them.

    Axes that are `fixed` keep their sizes.
    """
    here = example_point(program)
    found = dict(here)
    for axes in [each for each in joined_axes(program) if not set(each) & set(fixed)]:
        size = here[axes[0]]
        tries = ({**found, **dict.fromkeys(axes, other)} for other in _other_sizes(size, wanted[axes[0]]))
        found = next((point for point in tries if meets_guards(program, point)), found)
    stuck = [axis for axis, size in here.items() if found[axis] == size and axis not in fixed]
    for times, more in (
        ((2, 0), (3, 0), (1, 1), (1, 2)) if len(stuck) > 1 else ()
    ):  # sizes may depend on one another
        point = {**found, **{axis: here[axis] * times + more for axis in stuck}}
        if meets_guards(program, point):
            return point
    return found


def joined_axes(program: Program) -> list[list[str]]:
    """The dynamic axes, those together that have one size: dimensions of one symbol."""
    names = dynamic_axis_names(program)
    symbols: dict[Any, str] = {}
    groups: dict[str, list[str]] = {}
    for node in program.placeholders():
        for dim, axis in names.get(node.name, {}).items():
            first = symbols.setdefault(node.meta["val"].shape[dim].node.expr, axis)
            one, other = groups.setdefault(first, [first]), groups.setdefault(axis, [axis])
            if one is not other:
                one.extend(other)
                groups.update(dict.fromkeys(other, one))
    return list({id(axes): axes for axes in groups.values()}.values())


def _other_sizes(size: int, wanted: int) -> Iterator[int]:
    """Sizes to try in place of one: the one that is wanted, then larger and smaller ones."""
    near = range(size + 1, size + 9)
    yield from (each for each in (wanted, *near, *(size * k for k in (2, 3, 4, 8))) if each != size)
    yield from range(size - 1, 0, -1)


def _sized(value: Any, names: Mapping[int, str], point: Point) -> Any:
    """An input's shape at a point, without its data; a constant as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    return _Sized(tuple(point.get(names.get(dim, ""), size) for dim, size in enumerate(value.shape)))


@dataclass(frozen=True, slots=True)
class _Sized:
    shape: tuple[int, ...]


def tracing_inputs(program: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) on which torch.export leaves dynamic what is: the examples, with dynamic sizes of 1, which it would fix, as 2."""
    here = example_point(program)
    if 1 not in here.values():
        return tuple(program.args), dict(program.kwargs)
    return call_inputs(program, {axis: max(size, 2) for axis, size in here.items()})


def _names(program: Program) -> list[str]:
    """The name of every placeholder, empty for those that are no tensors."""
    names = iter(program.input_names())
    values = [node.meta.get("val") for node in program.placeholders()]
    return [next(names) if isinstance(value, torch.Tensor) else "" for value in values]


def _wanted(tensor: torch.Tensor, dim: int) -> str:
    if dim == 0:
        return "batch"
    last = tensor.ndim - 1
    if not tensor.is_floating_point():
        return "length" if dim == last else f"part{dim}"
    if tensor.ndim >= 4:
        return {last: "width", last - 1: "height"}.get(dim, f"part{dim}")
    return "length" if dim == 1 else f"part{dim}"


def _claim(taken: dict[str, int], name: str, wanted: str, size: int) -> str:
    for candidate in (wanted, f"{name}_{wanted}"):
        if taken.setdefault(candidate, size) == size:
            return candidate
    fresh = f"{name}_{wanted}_{size}"
    taken[fresh] = size
    return fresh


def _resize(tensor: torch.Tensor, names: Mapping[int, str], point: Point) -> torch.Tensor:
    for dim, name in names.items():
        wanted = torch.arange(point.get(name, tensor.shape[dim])) % tensor.shape[dim]
        tensor = tensor.index_select(dim, wanted.to(tensor.device))
    return tensor
