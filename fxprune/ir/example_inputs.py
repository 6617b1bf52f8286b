"""Example inputs at given sizes: the examples of a Program, repeated or cut along its dynamic axes.

A *point* gives sizes to the named dynamic axes: `{"batch": 8, "length": 64}`. The names are the ones in the
ONNX file: the first dimension of an input is `batch`, the last of a token sequence or the second of a feature
sequence `length`, the last two of an image `height` and `width`. Inputs at a point repeat the examples, so
that values stay in their range.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

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
