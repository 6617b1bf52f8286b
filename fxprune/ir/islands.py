"""Islands: parts of a model that were captured side by side in one Program, where the whole model can't be.

The Program's inputs are those of the islands' calls and its outputs what they return, under the islands' paths; parameters have the
names that they have in the model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import GuardError
from fxprune.ir.summary import quantity


@dataclass(frozen=True, eq=False)
class Island:
    """A captured module of a model: how it is called.

    `spec` is the tree of its arguments by name; `inputs` are the Program's inputs in the order of the tree's leaves, and `constants` the
    leaves that are no tensors, by their place. It was called `calls` times on the example inputs of the model.
    """

    path: str
    signature: inspect.Signature
    spec: pytree.TreeSpec
    inputs: tuple[str, ...]
    constants: Mapping[int, Any]
    calls: int = 1

    def tensors(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return the tensors of a call, in the order of `inputs`; GuardError where it is a call of another kind."""
        leaves, spec = pytree.tree_flatten(bound_arguments(self.signature, args, kwargs))
        if spec != self.spec or len(leaves) != len(self.inputs) + len(self.constants):
            raise GuardError(f"{self.path} was captured for other arguments: {self.spec}, now {spec}")
        for place, value in self.constants.items():
            if leaves[place] is not value and leaves[place] != value:
                raise GuardError(
                    f"{self.path} was captured with {value!r} where it is now given {leaves[place]!r}"
                )
        return [leaf for place, leaf in enumerate(leaves) if place not in self.constants]

    def call(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) of a call with the tensors of these inputs."""
        count, tensors = len(self.inputs) + len(self.constants), (values[name] for name in self.inputs)
        leaves = [
            self.constants[place] if place in self.constants else next(tensors) for place in range(count)
        ]
        bound = inspect.BoundArguments(self.signature, pytree.tree_unflatten(leaves, self.spec))
        return bound.args, bound.kwargs


@dataclass(frozen=True, eq=False)
class Islands:
    """The model that a Program's islands lie in, its example inputs, the islands by path, and what stays outside, with the reasons."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    parts: Mapping[str, Island]
    outside: Mapping[str, str] = field(default_factory=dict)

    def notes(self) -> tuple[str, ...]:
        """Return sentences on what is inside of islands, and what is outside and why, with the numbers of parameters."""
        inside, outside = self.sizes()
        kept, left = sum(inside.values()), sum(outside.values())
        share = f"{kept / max(1, kept + left):.1%}"
        kind, count = type(self.model).__name__, quantity(len(self.parts), "part")
        told = [
            f"captured {count} of {kind}, with {share} of its parameters, since: {self.outside.get('', 'asked for')}"
        ]
        for counts, what, texts in (
            (inside, "inside", {path: quantity(island.calls, "call") for path, island in self.parts.items()}),
            (outside, "outside", self.outside),
        ):
            told += _grouped(
                what, {path: text for path, text in texts.items() if counts[path] and path}, counts
            )
        return tuple(told)

    def sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the numbers of parameters in each part, and of those outside by the path whose reason is theirs ("": the whole's)."""
        inside, outside = dict.fromkeys(self.parts, 0), dict.fromkeys(("", *self.outside), 0)
        for name, parameter in self.model.named_parameters():
            own = _deepest(name, self.parts)
            if own is None:
                outside[_deepest(name, self.outside) or ""] += parameter.numel()
            else:
                inside[own] += parameter.numel()
        return inside, outside


def _deepest(name: str, paths: Iterable[str]) -> str | None:
    """Return the longest of the paths that a parameter lies under; None where there is none."""
    return max((path for path in paths if f"{name}.".startswith(f"{path}.")), key=len, default=None)


def _grouped(what: str, texts: Mapping[str, str], counts: Mapping[str, int]) -> list[str]:
    """Return a line for each group of modules that differ by numbers in their paths and have the same text."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path, text in texts.items():
        groups.setdefault((re.sub(r"\d+", "#", path), text), []).append(path)
    return [
        f"{what}: {paths[0]}{f' … {paths[-1]}' if paths[1:] else ''} "
        f"({quantity(sum(counts[path] for path in paths), 'parameter')}): {text}"
        for (_, text), paths in groups.items()
    ]


def bound_arguments(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name, with defaults for those that are not given."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
