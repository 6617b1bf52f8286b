"""Recorded calls: with what each submodule is called while a model runs, and from where."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import UsageError
from fxprune.frontend.agreement import outputs_on
from fxprune.frontend.module_call import clone_inputs
from fxprune.ir import Program
from fxprune.ir.islands import Islands, bound_arguments

CallInputs = tuple[tuple[Any, ...], Mapping[str, Any]]
"""(args, kwargs)"""


@dataclass(frozen=True)
class CallForm:
    """Form of a call: the tree of its arguments, and of each leaf the shape and dtype, or the constant."""

    spec: pytree.TreeSpec
    leaves: tuple[Any, ...]

    def like(self, other: CallForm) -> bool:
        """Return whether another call differs in sizes only."""
        alike = len(self.leaves) == len(other.leaves) and self.spec == other.spec
        return alike and all(map(_alike, self.leaves, other.leaves))


@dataclass(eq=False)
class Calls:
    """Calls of one module: its signature, copies of the first call's arguments, the form of each call, and the calls around each."""

    signature: inspect.Signature
    first: CallInputs
    forms: list[CallForm] = field(default_factory=list)
    around: list[frozenset[str]] = field(default_factory=list)


def record_calls(
    model: nn.Module, inputs: CallInputs, only: Collection[str] | None = None
) -> dict[str, Calls]:
    """Run a model, as it would be captured, and return the calls of its submodules by path, or of some.

    A module under several paths is under its first. Calls that do not go through `__call__` are not seen.
    """
    found: dict[str, Calls] = {}
    with _recording(model, found, only):
        outputs_on(model, inputs)
    return found


def island_batches(program: Program, data: Iterable[Any]) -> Iterator[Any]:
    """Yield the inputs of a program's islands, by name, for each batch of their model's inputs: those of the first call of each.

    A batch of which all names are the program's own is passed on as it is. What stands behind the model's inputs (labels) stands behind
    those of the islands. UsageError where the model does not call an island on a batch.
    """
    islands, own = program.islands, set(program.input_names())
    assert islands is not None
    for place, batch in enumerate(data):
        if isinstance(batch, Mapping) and own.issuperset(batch):
            yield batch
            continue
        call, extra = _call_of(islands, batch)
        calls = record_calls(islands.model, call, islands.parts)
        missing = [path for path in islands.parts if path not in calls]
        if missing:
            raise UsageError(
                f"batch {place}: {type(islands.model).__name__} does not call {missing[0]} on it"
            )
        found = {path: island.tensors(*calls[path].first) for path, island in islands.parts.items()}
        named = {
            name: value
            for path, island in islands.parts.items()
            for name, value in zip(island.inputs, found[path], strict=True)
        }
        yield (named, *extra) if extra else named


def _call_of(islands: Islands, batch: Any) -> tuple[CallInputs, tuple[Any, ...]]:
    """Return the (args, kwargs) that a batch stands for, and the entries that the model does not take."""
    if isinstance(batch, Mapping):
        takes = inspect.signature(islands.model.forward).parameters
        any_name = any(each.kind is each.VAR_KEYWORD for each in takes.values())
        extra = () if any_name else tuple(name for name in batch if name not in takes)
        return ((), {name: torch.as_tensor(batch[name]) for name in batch if name not in extra}), extra
    values = batch if isinstance(batch, (tuple, list)) else (batch,)
    count = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((islands.args, islands.kwargs)))
    return (tuple(torch.as_tensor(value) for value in values[:count]), {}), tuple(values[count:])


@contextmanager
def _recording(model: nn.Module, found: dict[str, Calls], only: Collection[str] | None) -> Iterator[None]:
    active: list[str] = []
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path and (only is None or path in only):
                before = partial(_entered, path, active, found)
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                after = partial(_left, active)
                stack.callback(module.register_forward_hook(after, always_call=True).remove)
        yield


def _entered(
    path: str,
    active: list[str],
    found: dict[str, Calls],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    signature = inspect.signature(module.forward)
    if path not in found:
        found[path] = Calls(signature, clone_inputs((args, dict(kwargs))))
    found[path].forms.append(_form(signature, (args, kwargs)))
    found[path].around.append(frozenset(active))
    active.append(path)


def _left(active: list[str], _module: nn.Module, _args: Any, _output: Any) -> None:
    active.pop()


def _form(signature: inspect.Signature, inputs: CallInputs) -> CallForm:
    leaves, spec = pytree.tree_flatten(bound_arguments(signature, *inputs))
    return CallForm(
        spec, tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    )


def _alike(one: Any, other: Any) -> bool:
    sized = [isinstance(each, tuple) for each in (one, other)]
    if all(sized):
        return len(one[0]) == len(other[0]) and one[1] == other[1]
    return not any(sized) and (one is other or bool(one == other))
