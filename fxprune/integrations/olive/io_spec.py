"""I/O specs of other tools (dummy tensors, names of dynamic dimensions and outputs), prepared for capture and proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim
from torch.utils import _pytree as pytree

from fxprune.errors import UsageError
from fxprune.ir import Program, attribute, copy_graph, rebuild, trees

Axes = Mapping[str, Mapping[int, str]]
"""The dynamic dimensions of inputs, by name: `{"input_ids": {0: "batch", 1: "length"}}`; dimensions of one name have one size."""


def vary_sizes(inputs: Mapping[str, Tensor], axes: Axes) -> dict[str, Tensor]:
    """Return the inputs with distinct sizes above 1 for all dynamic axes: torch.export fixes a size of 1, and unifies equal sizes.

    A dimension that grows repeats its content. UsageError where an input has no such dimension.
    """
    sizes: dict[str, int] = {}
    for name, tensor in inputs.items():
        for dim, axis in axes.get(name, {}).items():
            if not 0 <= dim < tensor.ndim:
                raise UsageError(
                    f"dimension {dim} of input {name!r} is to be dynamic ({axis}), and its shape is {tuple(tensor.shape)}"
                )
            if axis not in sizes:
                sizes[axis] = _size(tensor.shape[dim], set(sizes.values()))
    return {name: _resized(tensor, axes.get(name, {}), sizes) for name, tensor in inputs.items()}


def dynamic_shapes_of(inputs: Mapping[str, Tensor], axes: Axes) -> dict[str, dict[int, object]] | None:
    """Return the dynamic shapes for a capture; None where every size is fixed."""
    shapes: dict[str, dict[int, object]] = {n: dict.fromkeys(axes.get(n, {}), Dim.AUTO) for n in inputs}
    return shapes if any(shapes.values()) else None


def varied(program: Program) -> Program:
    """Return the program (captured on keyword inputs) with random example inputs in place of constant ones.

    Over equal tokens attention gives the same result for all queries and keys, so that a proof would not cover them. Floating inputs become
    normal numbers, indices of a table become random rows; other integers, such as masks of ones, stay.
    """
    random = torch.Generator().manual_seed(0)
    nodes = dict(zip(trees(program.graph_module).orig_args, program.placeholders(), strict=True))
    drawn = {
        name: _drawn(program, nodes[name], value, random)
        for name, value in program.kwargs.items()
        if isinstance(value, Tensor) and value.numel() > 1 and bool((value == value.flatten()[0]).all())
    }
    return program.replace(kwargs={**program.kwargs, **drawn})


def named(program: Program, names: Sequence[str]) -> Program:
    """Return the program with these output names, where the model names none; UsageError where it has other names or fewer outputs."""
    found = program.output_names()
    if set(names) <= set(found):
        return program
    info = trees(program.graph_module)
    if found != tuple(f"output_{place}" for place in range(info.out_spec.num_leaves)):
        missing = ", ".join(name for name in names if name not in found)
        raise UsageError(f"no output {missing} here; the outputs that the model names are {', '.join(found)}")
    if len(names) > len(found):
        raise UsageError(
            f"the outputs are to be called {', '.join(names)}, and the model has only {len(found)}"
        )
    whole = dict.fromkeys((*names, *found[len(names) :]), 0)
    graph = copy_graph(program)
    graph._codegen.pytree_info = info._replace(out_spec=pytree.tree_structure(whole))  # type: ignore[attr-defined]
    return rebuild(program, graph, program.tensors())


def _size(size: int, taken: set[int]) -> int:
    return size if size > 1 and size not in taken else next(n for n in count(3, 2) if n not in taken)


def _resized(tensor: Tensor, axes: Mapping[int, str], sizes: Mapping[str, int]) -> Tensor:
    for dim, axis in axes.items():
        tensor = tensor.index_select(dim, torch.arange(sizes[axis]) % tensor.shape[dim])
    return tensor


def _drawn(program: Program, node: fx.Node, value: Tensor, random: torch.Generator) -> Tensor:
    if value.is_floating_point():
        return torch.randn(value.shape, generator=random).to(value)
    readers = [user for user in node.users if user.target is torch.ops.aten.embedding.default]
    sources: list[Any] = [user.args[0] for user in readers if user.args[1] is node]
    names = [str(source.target) for source in sources if source.op == "get_attr"]
    tables = [attribute(program.graph_module, name) for name in names]
    rows = min((len(table) for table in tables), default=0)
    return torch.randint(rows, value.shape, generator=random).to(value) if rows else value
