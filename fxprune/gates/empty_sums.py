"""Empty-sum elimination: replace a sum with no remaining terms by its bias (or zero), and drop the code that fed it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis import Analysis, Axis, analyze
from fxprune.analysis.axes import Member
from fxprune.analysis.axis_names import Label, free_atoms
from fxprune.analysis.dim_inference import sizes_of
from fxprune.analysis.linear_ops import sum_of
from fxprune.dims import Dim, coordinates, leaves
from fxprune.ir import Program, bind, call, copy_graph, rebuild
from fxprune.rewrite import remove_dead
from fxprune.rewrite.shape_propagation import propagate
from fxprune.rules import Contraction

aten = torch.ops.aten


def remove_empty_sums(analysis: Analysis, axes: Iterable[Axis]) -> tuple[Program, tuple[str, ...]]:
    """Replace the sums over these axes by their remainders; return (the program, the names of the axes that remain as they were).

    The result equals the given program where all readers of the axes are zero. Code that only fed the sums is removed. An axis stays where
    some sum over it has no constant remainder. Values that are no longer summed may have coarser axes: these are new ones with new names.
    """
    program = analysis.program
    graph = rebuild(program, copy_graph(program), {}).graph_module
    nodes = dict(zip(program.graph.nodes, graph.graph.nodes, strict=True))
    for axis in axes:
        sums = [found for found in analysis.flow.contractions if axis.leaf in leaves(found.dim)]
        if sums and all(_is_replaceable(program, found, axis.leaf) for found in sums):
            for found in sums:
                _replace(graph, program, nodes, found.node)
    slim = rebuild(program, graph.graph, {}).replace(labels={})
    remove_dead(slim.graph_module)
    slim.graph_module.recompile()
    calls = [node for node in slim.graph.nodes if node.op == "call_function" and "val" in node.meta]
    tensors = [node for node in calls if isinstance(node.meta["val"], Tensor)]
    propagate(slim, {node: sizes_of(node.meta["val"]) for node in tensors}, program)
    found_again = _same(analysis, analyze(slim))
    return slim.replace(labels=_labels(found_again)), tuple(found_again)


def _same(before: Analysis, after: Analysis) -> dict[str, Axis]:
    """Return the axes of a rewritten program that lie in some tensor where an axis of the original did, by the name of that axis."""
    lay = {_place(member, axis.size): axis.name for axis in before.axes for member in axis.members}
    found: dict[str, Axis] = {}
    for axis in after.axes:
        names = {lay.get(_place(member, axis.size), "") for member in axis.members}
        if len(names) == 1 and names != {""}:
            found.setdefault(names.pop(), axis)
    return found


def _place(member: Member, size: int) -> tuple[Any, ...]:
    """Return the position of a member as a key: tensor, dimension, size of the axis, indices of its first and of its last unit."""
    return member.name, member.dim, size, tuple(member.indices(0)), tuple(member.indices(size - 1))


def _labels(axes: Mapping[str, Axis]) -> dict[Label, str]:
    return {
        (member.name, member.dim, ordinal): name
        for name, axis in axes.items()
        for member in axis.members
        for ordinal, leaf in enumerate(free_atoms(member.carrier))
        if leaf is axis.leaf
    }


def _is_replaceable(program: Program, found: Contraction, leaf: Dim) -> bool:
    """Return whether every term belongs to the axis, the operator's remainder is known, and so are its sizes, from the inputs."""
    everything = bool((coordinates(found.dim, leaf) >= 0).all())
    return everything and sum_of(found.node) is not None and _sizes(program, found.node) is not None


def _sizes(program: Program, node: fx.Node) -> list[Any] | None:
    """Return the sizes of a value: numbers, or lists of factors (see `_product`); None where one is neither."""
    tensors = [node for node in program.placeholders() if isinstance(node.meta.get("val"), Tensor)]
    places = [(node, i, size) for node in reversed(tensors) for i, size in enumerate(node.meta["val"].shape)]
    inputs = {size.node.expr: (node, i) for node, i, size in places if not isinstance(size, int)}
    sizes = node.meta["val"].shape
    found = [size if isinstance(size, int) else _product(size.node.expr, inputs) for size in sizes]
    return None if None in found else found


def _product(size: Any, inputs: dict[Any, tuple[fx.Node, int]]) -> list[Any] | None:
    """Return the factors of a symbolic size, numbers or (placeholder, dimension); None where one is neither."""
    found: list[Any] = []
    for factor in [size] if size in inputs else size.as_ordered_factors():
        if factor not in inputs and not factor.is_Integer:
            return None
        found.append(inputs[factor] if factor in inputs else int(factor))
    return found


def _replace(graph: fx.GraphModule, program: Program, nodes: dict[fx.Node, fx.Node], node: fx.Node) -> None:
    """Replace a sum by its remainder: the addend broadcast to its shape, or zeros."""
    kind = sum_of(node)
    added: Any = bind(node)[kind.bias].value if kind and kind.bias else None
    value, here = node.meta["val"], nodes[node]
    with graph.graph.inserting_before(here):
        shape = [_size(graph, nodes, size) for size in _sizes(program, node) or ()]
        if added is None:
            result = _zeros(graph, shape, value)
        else:
            small = nodes[added]
            if kind and kind.spatial:
                points = bind(node)[kind.weight].value.meta["val"].dim() - 2
                small = call(graph, aten.view.default, (small, [-1, *(1,) * points]))
            result = call(graph, aten.expand.default, (small, shape))
    result.meta["val"] = value
    here.replace_all_uses_with(result)


def _zeros(graph: fx.GraphModule, shape: list[Any], value: Tensor) -> fx.Node:
    how = {"dtype": value.dtype, "device": value.device}
    return call(graph, aten.full.default, (shape, 0.0), how)


def _size(graph: fx.GraphModule, nodes: dict[fx.Node, fx.Node], size: Any) -> Any:
    """Return a size as a number, or as a node that computes it from the sizes of inputs."""
    if isinstance(size, int):
        return size
    factors: list[Any] = []
    for factor in size:
        known = isinstance(factor, int)
        factors.append(factor if known else call(graph, aten.sym_size.int, (nodes[factor[0]], factor[1])))
    return functools.reduce(lambda one, other: call(graph, operator.mul, (one, other)), factors)
