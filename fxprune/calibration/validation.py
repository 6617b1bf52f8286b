"""Batch validation: check that given inputs of one run fit a program, and convert them to tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.errors import UsageError
from fxprune.ir import Program, describe_error, is_free
from fxprune.ir.example_inputs import dynamic_axis_names


def check_batch(program: Program, given: Any, where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return one batch's tensors by input name, and a description of each entry that no input takes; `where` names the batch in errors.

    The tensors are copies in the program's order, dtypes and device. `given` is what a loader gives: a mapping of names to tensors, arrays
    or lists, or the tensors in the order of the inputs; behind either, and under names unlike those of inputs, may be labels.
    UsageError where a name, a kind of number, a size or a value does not fit.
    """
    named, extra = _named(program, given, where)
    try:
        return _fitted(program, named, where), tuple(_told(value) for value in extra)
    except UsageError as error:
        if not extra or isinstance(given, Mapping) or isinstance(given[0], Mapping):
            raise
        count, first = len(given), _counted(len(given) - len(extra))
        raise UsageError(
            f"{where} holds {count} tensors, too many for {inputs_text(program)}, and {first} fit: {error}"
        ) from error


def _fitted(program: Program, named: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    _check_names(program, named, where)
    nodes = [node for node in program.placeholders() if node.name in named]
    batch = {node.name: _tensor(node, named[node.name], f"{where}: {node.name}") for node in nodes}
    for node in nodes:
        _check_shape(program, node, batch[node.name], f"{where}: {node.name}")
    _check_alike(nodes, batch, where)
    return batch


def check_range(name: str, value: Tensor) -> None:
    """Raise UsageError where a value on calibration data is not finite, or so large that squares overflow in the model's arithmetic."""
    if not value.is_floating_point() or not value.numel():
        return
    kind = value.dtype if value.dtype == torch.float64 else torch.float32  # half types are summed in float32
    most, limit = float(value.detach().abs().max()), math.sqrt(torch.finfo(kind).max)
    if not most <= limit:
        raise UsageError(
            f"the calibration data are out of range: they make {name} as large as {most:.3g}, and above {limit:.1e} squares"
            f" are infinite in {_name(kind)}; give data like those of real use"
        )


def _named(program: Program, given: Any, where: str) -> tuple[Mapping[str, Any], Sequence[Any]]:
    """Return the entries of a batch by the names of inputs, and those that are left over."""
    names = program.input_names()
    if isinstance(given, Mapping):
        return _without_labels(program, given)
    values = [given] if _is_array(given) else given
    if isinstance(values, (tuple, list)) and len(values) > 1 and isinstance(values[0], Mapping):
        return values[0], values[1:]
    if not isinstance(values, (tuple, list)) or not all(map(_is_array, values[: len(names)])):
        raise UsageError(
            f"{where} is a {type(given).__name__}; expected a mapping of input names to tensors, or tensors in"
            f" the order of the inputs: {', '.join(names)}"
        )
    return dict(zip(names, values, strict=False)), values[len(names) :]


def _without_labels(program: Program, given: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], Sequence[Any]]:
    """Return a mapping without entries that are no inputs, and their names, where all inputs are there and none is misspelled."""
    names = program.input_names()
    extra = [name for name in given if name not in names]
    near = any(get_close_matches(str(name), names) for name in extra)
    if near or not _read_inputs(program) <= given.keys():
        return given, ()
    return {name: value for name, value in given.items() if name in names}, [str(name) for name in extra]


def _read_inputs(program: Program) -> set[str]:
    return {node.name for node in program.placeholders() if node.users} & set(program.input_names())


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _told(value: Any) -> str:
    """Return what an entry of a batch is, in short: `int64 32×1`, the name of an entry of a mapping, or a type."""
    if _is_array(value):
        return f"{_name(value.dtype)} {_sizes(value.shape)}"
    return repr(value) if isinstance(value, str) else f"a {type(value).__name__}"


def _counted(count: int) -> str:
    return "the first does not" if count == 1 else f"the first {count} do not"


def _check_names(program: Program, named: Mapping[Any, Any], where: str) -> None:
    names = program.input_names()
    unknown = [name for name in named if name not in names]
    if unknown:
        near = get_close_matches(str(unknown[0]), names, n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise UsageError(
            f"{where} has {unknown[0]!r}, which is no input of the program{hint}; it takes {inputs_text(program)}"
        )
    read = _read_inputs(program)
    missing = [name for name in names if name in read and name not in named]
    if missing:
        raise UsageError(f"{where} lacks {missing[0]!r}; the program takes {inputs_text(program)}")


def _tensor(node: fx.Node, given: Any, where: str) -> Tensor:
    """Return a copy of a value in the program's dtype and on its device, as loaders reuse their memory.

    UsageError where the value is of another kind of number, is not finite, or does not fit the dtype.
    """
    wanted = node.meta["val"]
    value = _read(given, where).detach()
    if _kind(value.dtype) != _kind(wanted.dtype):
        raise UsageError(
            f"{where} is {_name(value.dtype)}, and the program takes {_name(wanted.dtype)};"
            f" convert it with .to({wanted.dtype}) if that is what it means"
        )
    made = value.to(wanted.dtype, copy=True)
    bad = int((~made.isfinite()).sum())
    if bad:
        raise UsageError(
            f"{where} holds NaN or infinity as {_name(made.dtype)} ({bad} of {made.numel()} values);"
            " mend these rows or leave them out"
        )
    if _kind(value.dtype) == "integer" and not torch.equal(made.to(value.dtype), value):
        raise UsageError(
            f"{where} holds {_name(value.dtype)} values that {_name(made.dtype)}, which the program takes,"
            " can't hold; give smaller ones"
        )
    return made.to(wanted.device)


def _read(given: Any, where: str) -> Tensor:
    if isinstance(given, Tensor):
        return given
    try:
        # Arrays may be read-only or have negative strides, which torch does not support.
        return torch.tensor(np.asarray(given, order="C") if isinstance(given, np.ndarray) else given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{where} is a {type(given).__name__} that can't be read as a tensor ({describe_error(error)});"
            " give a tensor, an array or nested lists of numbers"
        ) from error


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    if dtype.is_floating_point:
        return "float"
    return "complex" if dtype.is_complex else "integer"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_shape(program: Program, node: fx.Node, value: Tensor, where: str) -> None:
    wanted = node.meta["val"].shape
    fault = _shape_fault(wanted, value.shape)
    if not fault:
        return
    axes = dynamic_axis_names(program)[node.name]
    takes = _sizes(axes.get(dim, size) for dim, size in enumerate(wanted))
    raise UsageError(f"{where} is {_sizes(value.shape)}, and the program takes {takes}: {fault}")


def _shape_fault(wanted: Sequence[Any], got: Sequence[int]) -> str:
    if len(wanted) != len(got):
        return f"it must have {len(wanted)} dimension{'s' * (len(wanted) != 1)}, not {len(got)}"
    for dim, (size, found) in enumerate(zip(wanted, got, strict=True)):
        if is_free(size) and not found:
            return f"dimension {dim} must not be empty"
        if not is_free(size) and found != int(size):
            return f"dimension {dim} is fixed and must be {int(size)}"
    return ""


def _check_alike(nodes: Sequence[fx.Node], batch: Mapping[str, Tensor], where: str) -> None:
    """Check that sizes with the same symbol in torch.export are equal; UsageError where they differ."""
    first: dict[str, tuple[str, int, int]] = {}
    for symbol, name, dim, size in _free_sizes(nodes, batch):
        other, place, found = first.setdefault(symbol, (name, dim, size))
        if found != size:
            raise UsageError(
                f"{where}: dimension {place} of {other} is {found} and dimension {dim} of {name} is {size};"
                " the program takes equal sizes there"
            )


def _free_sizes(nodes: Sequence[fx.Node], batch: Mapping[str, Tensor]) -> Iterator[tuple[str, str, int, int]]:
    """Yield (symbol, input, dimension, size in the batch) of every dynamic dimension."""
    for node in nodes:
        pairs = enumerate(zip(node.meta["val"].shape, batch[node.name].shape, strict=True))
        yield from ((str(size), node.name, dim, found) for dim, (size, found) in pairs if is_free(size))


def inputs_text(program: Program) -> str:
    """Return the names of the tensor inputs, as a part of a sentence."""
    names = program.input_names()
    return f"the input{'s' if len(names) > 1 else ''} {', '.join(names)}"


def describe_inputs(batch: Mapping[str, Tensor]) -> str:
    """Return the inputs with their sizes, and the range of integers: an id beyond the end of a table is the usual cause of errors."""
    return ", ".join(f"{name} {_sizes(value.shape)}{_range(value)}" for name, value in batch.items())


def _range(value: Tensor) -> str:
    if _kind(value.dtype) != "integer" or not value.numel():
        return ""
    return f" from {int(value.min())} to {int(value.max())}"


def _sizes(shape: Iterable[Any]) -> str:
    """Return sizes or names of axes as text: `3×13`, or `a single number` where there are none."""
    return "×".join(map(str, shape)) or "a single number"
