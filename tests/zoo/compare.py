"""Comparison of programs: their outputs, the largest relative difference, and a copy of a program in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.ir import Program, copy_graph, rebuild
from fxprune.rewrite.islands import in_model


def copied(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Clones of the tensors: torch.export marks those that it is given as dynamic, and a later export reads the marks."""
    fresh: dict[str, Any] = pytree.tree_map_only(Tensor, torch.clone, dict(kwargs))
    return fresh


def outputs(program: Program, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a program returns; random numbers are the same for each call."""
    torch.manual_seed(1)
    return [value for value in pytree.tree_leaves(program(**kwargs)) if isinstance(value, Tensor)]


def outputs_in_model(program: Program, in_double: bool = False) -> list[Tensor]:
    """The tensors that the model of a program's islands returns with these in place, on its own example inputs."""
    assert program.islands is not None
    args, kwargs = program.islands.args, dict(program.islands.kwargs)
    model = in_model(doubled(program)).double() if in_double else in_model(program)
    torch.manual_seed(1)
    with torch.no_grad():
        made = model(*double(args), **double(kwargs)) if in_double else model(*args, **kwargs)
    return [value for value in pytree.tree_leaves(made) if isinstance(value, Tensor)]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference relative to the largest value of the same output; infinite where shapes or non-finite places differ."""
    pairs = list(zip(ours, theirs, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")
    return max((_relative(one.double(), other.double()) for one, other in pairs if one.numel()), default=0.0)


def _relative(one: Tensor, other: Tensor) -> float:
    infinite = ~other.isfinite()
    if not torch.equal(infinite, ~one.isfinite()) or bool(infinite.all()):
        return float("inf")
    one, other = one[~infinite], other[~infinite]
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def doubled(program: Program) -> Program:
    """The program in float64, its casts to float32 included, to tell rounding from a wrong answer."""
    graph = copy_graph(program)
    for node in graph.nodes:
        node.args, node.kwargs = pytree.tree_map(
            double, (node.args, node.kwargs), is_leaf=lambda x: isinstance(x, fx.Node)
        )
    return rebuild(program, graph, {name: double(value) for name, value in program.tensors().items()})


def double(value: Any) -> Any:
    """Inputs, weights and dtypes in float64 where they are float32, however nested."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value == torch.float32 else value
    if isinstance(value, Mapping):
        return {name: double(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(double(item) for item in value)
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    return nn.Parameter(value.detach().double()) if isinstance(value, nn.Parameter) else value.double()
