"""Fixed sizes: an example of one row captured as one of several, and what came out fixed of the sizes that were asked to vary."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from fxprune.ir import Program
from fxprune.ir.signature import owners, shape_leaves

_Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Size = tuple[str, int]
"""(input, dimension)"""


def doubled_batch(model: nn.Module, inputs: _Inputs, shapes: Any) -> _Inputs | None:
    """Return inputs of two equal rows where they have a batch of one that is asked to vary; None for all others.

    torch.export takes a size of 1 for fixed, since it may broadcast.
    """
    given = _arguments(model, inputs)
    if not isinstance(shapes, Mapping) or given is None:
        return None
    found = [
        value
        for leaves, hints in _leaves(given, shapes).values()
        for value, hint in zip(leaves, hints, strict=True)
        if isinstance(value, Tensor) and _varies(hint, 0)
    ]
    if not found or any(value.shape[0] != 1 for value in found):
        return None
    ours = {id(value) for value in found}
    args, kwargs = pytree.tree_map(
        lambda value: torch.cat([value, value]) if id(value) in ours else value, inputs
    )
    return args, kwargs


def fixed_notes(
    model: nn.Module, program: Program, shapes: Any, why: Mapping[Size, str], explicit: bool
) -> tuple[str, ...]:
    """Return a sentence about each size that was asked to vary and is fixed.

    Where nothing is `explicit` (torch decides about all sizes), the widths of weights are left out: what is told are batches, and sizes
    that a line of the model or a difference to it (`why`) fixed.
    """
    free = {(name, dim) for name, dims in program.free_dims().items() for dim in dims}
    lines = {guard.text: guard.where for guard in program.guards if guard.where}
    notes: list[str] = []
    for (name, dim), size in _asked(model, program, shapes).items():
        line = lines.get(f"L[{name!r}].size()[{dim}] == {size}")
        reason = why.get((name, dim)) or (f"the graph depends on it [{line}]" if line else "")
        if (name, dim) in free or not (reason or explicit or dim == 0):
            continue
        one = "torch.export takes a size of 1 for fixed: capture with an example of 2 or more"
        told = reason or (one if size == 1 else "torch.export found that the graph depends on it")
        notes.append(f"dimension {dim} of input {name} is fixed at {size}: {told}")
    return tuple(notes)


def _asked(model: nn.Module, program: Program, shapes: Any) -> dict[Size, int]:
    """Return the sizes that were asked to vary, with those of the example; none where arguments have other names in the graph."""
    given = _arguments(model, (program.args, dict(program.kwargs)))
    if not isinstance(shapes, Mapping) or given is None:
        return {}
    found: dict[Size, int] = {}
    owner = owners(program)
    for argument, (leaves, hints) in _leaves(given, shapes).items():
        names = [name for name, each in owner.items() if each == argument]
        for name, value, hint in zip(names, leaves, hints, strict=len(names) > 0):
            if isinstance(value, Tensor):
                found |= {(name, dim): value.shape[dim] for dim in range(value.dim()) if _varies(hint, dim)}
    return found


def _arguments(model: nn.Module, inputs: _Inputs) -> dict[str, Any] | None:
    """Return the arguments of a call by the names of the model's parameters; None where it does not fit them."""
    try:
        return inspect.signature(model.forward).bind(*inputs[0], **inputs[1]).arguments
    except TypeError:
        return None


def _leaves(given: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return the leaves of each argument, and the dynamic shapes asked for them."""
    found = {}
    for name, value in given.items():
        leaves, spec = pytree.tree_flatten(value)
        found[name] = leaves, shape_leaves(spec, shapes.get(name))
    return found


def _varies(hint: Any, dim: int) -> bool:
    """Return whether a dimension of a tensor is asked to vary."""
    if isinstance(hint, (tuple, list)):
        hint = dict(enumerate(hint))
    asked = hint.get(dim) if isinstance(hint, Mapping) else None
    return asked is not None and not isinstance(asked, int) and asked != Dim.STATIC
