"""Partition over an axis: copy the nodes that carry an axis, one copy for each group of its units, and add the sums of the copies.

The sum over all units is the sum of the sums over groups of them. The copies can then shrink independently: attention heads of unequal
sizes in one copy for each size, or in one for each head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis import Analysis, Axis, flat_dims
from fxprune.analysis.axis_names import Label, free_atoms
from fxprune.analysis.linear_ops import sum_of
from fxprune.dims import leaves, zero
from fxprune.errors import RefusedError
from fxprune.ir import (
    Program,
    attribute,
    bind,
    call,
    copy_graph,
    operands,
    rebuild,
    set_attribute,
    source_line,
    storage_key,
)
from fxprune.ir.naming import part_name, part_tensor
from fxprune.rewrite import remove_dead
from fxprune.rules import Linear

aten = torch.ops.aten


def partition(analysis: Analysis, axis: Axis, groups: Sequence[Sequence[int]]) -> Program:
    """Return the same function as a sum of copies, one for each group of units; readers of the other groups' units are zero in a copy.

    Axes whose members all lie in the copies are called `<name>.part<k>` in copy k. RefusedError where the axis is not exact, and where a
    value without the axis is computed from one that has it by anything but a sum.
    """
    if not axis.exact:
        raise RefusedError(
            f"axis {axis.name} can't be computed in parts: it is not exact ({axis.why_inexact})"
        )
    return _Copier(analysis, axis, groups).run()


@dataclass
class _Copier:
    """State of one partition: the new graph, and the copies of each node and tensor."""

    analysis: Analysis
    axis: Axis
    groups: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        program = self.analysis.program
        self.graph = rebuild(program, copy_graph(program), {}).graph_module
        originals = list(program.graph.nodes)
        self.nodes = dict(zip(originals, self.graph.graph.nodes, strict=True))
        self.carrying = self._carriers(originals)
        self.sums = {c.node for c in self.analysis.flow.contractions if self.axis.leaf in leaves(c.dim)}
        self.copies: list[dict[fx.Node, fx.Node]] = [{} for _ in self.groups]
        self.made: list[dict[Any, Tensor]] = [{} for _ in self.groups]
        self.names: dict[str, list[str]] = {}

    def run(self) -> Program:
        for node in self.nodes:
            if node in self.carrying:
                self._copy(node)
            elif any(source in self.carrying for source in operands(node)):
                self._add(node)
        tensors = dict(self.analysis.program.tensors())
        tensors |= {str(n.target): attribute(self.graph, str(n.target)) for n in self._reads()}
        apart = rebuild(self.analysis.program, self.graph.graph, tensors)
        remove_dead(apart.graph_module)
        apart.graph_module.recompile()
        return apart.replace(labels=self._labels())

    def _reads(self) -> list[fx.Node]:
        return [copy for copied in self.copies for copy in copied.values() if copy.op == "get_attr"]

    def _carriers(self, originals: list[fx.Node]) -> set[fx.Node]:
        """Return the nodes whose value has the axis, and those that return no tensor and read such a value (a size)."""
        found: set[fx.Node] = set()
        for node in originals:
            dims = flat_dims(self.analysis.flow.dims.get(node, ()))
            carries = any(self.axis.leaf in leaves(dim) for dim in dims)
            plain = node.op == "call_function" and not _has_tensor(node)
            if carries or (plain and any(source in found for source in operands(node))):
                found.add(node)
        return found

    def _copy(self, node: fx.Node) -> None:
        """Copy a node for each group, before the original."""
        if node.op == "get_attr":
            self._copy_tensor(node)
            return
        for copied in self.copies:
            with self.graph.graph.inserting_before(self.nodes[node]):
                copied[node] = self.graph.graph.node_copy(node, self._within(copied))

    def _within(self, copied: dict[fx.Node, fx.Node]) -> Callable[[fx.Node], fx.Node]:
        """Return the map from a node's operands to those in a copy: the copy's own, else the nodes that all copies share."""
        return lambda source: copied.get(source) or self.nodes[source]

    def _copy_tensor(self, node: fx.Node) -> None:
        """Copy a tensor for each group; tied tensors stay tied within a copy."""
        value = attribute(self.analysis.program.graph_module, str(node.target))
        for number, copied in enumerate(self.copies):
            name = self._tensor_name(str(node.target), number)
            held = self.made[number]
            if storage_key(value) not in held:
                held[storage_key(value)] = self._own(node, value, number)
            set_attribute(self.graph, name, held[storage_key(value)])
            with self.graph.graph.inserting_before(self.nodes[node]):
                made = self.graph.graph.get_attr(name)
            made.meta = dict(node.meta)
            copied[node] = made

    def _own(self, node: fx.Node, value: Tensor, number: int) -> Tensor:
        """Return a copy of a tensor; where it is a reader of the axis, with zeros for the units of other groups."""
        kept = torch.zeros(self.axis.size, dtype=torch.bool)
        kept[list(self.groups[number])] = True
        reads = str(node.target) in self.axis.readers
        return zero(value, self.analysis.flow.dims[node], {self.axis.leaf: kept} if reads else {})

    def _tensor_name(self, name: str, number: int) -> str:
        """Return the name of a tensor's copy, and record it in `names`."""
        made = part_tensor(name, number)
        known = self.names.setdefault(name, [])
        if made not in known:
            known.append(made)
        return made

    def _add(self, node: fx.Node) -> None:
        """Replace a sum by the total of the copies' sums; RefusedError where the node is no sum that can be computed in parts."""
        if node not in self.sums or sum_of(node) is None:
            raise RefusedError(
                f"{node.name} = {node.target} takes {self.axis.name} together, and not by a sum that can be computed in parts"
                f" [{source_line(node)}]"
            )
        with self.graph.graph.inserting_before(self.nodes[node]):
            total = self._sum(node, 0)
            for number in range(1, len(self.groups)):
                total = call(self.graph, aten.add.Tensor, (total, self._sum(node, number)))
                total.meta |= node.meta
        self.nodes[node].replace_all_uses_with(total)
        self.nodes[node] = total

    def _sum(self, node: fx.Node, number: int) -> fx.Node:
        """Return the sum over one group; only the first group's keeps the addend (the bias)."""
        made = self.graph.graph.node_copy(node, self._within(self.copies[number]))
        linear = sum_of(node)
        if number and linear and linear.bias:
            _without(made, linear)
        return made

    def _labels(self) -> dict[Label, str]:
        """Return the names of axes in the copies' tensors: axes that lie in copies only are numbered."""
        found: dict[Label, str] = {}
        for axis in self.analysis.axes:
            numbered = all(member.name in self.names for member in axis.members)
            for member in axis.members:
                for ordinal, leaf in enumerate(free_atoms(member.carrier)):
                    if leaf is not axis.leaf:
                        continue
                    for number, name in enumerate(self.names.get(member.name, [member.name])):
                        label = part_name(axis.name, number) if numbered else axis.name
                        found[(name, member.dim, ordinal)] = label
        return found


def _without(node: fx.Node, linear: Linear) -> None:
    """Remove the addend of a copied sum."""
    if linear.bare is not None:
        node.target, node.args, node.kwargs = linear.bare, node.args[1:], {}
        return
    path = bind(node)[linear.bias].path
    if path and path[0] == "args":
        node.update_arg(int(path[1]), None)
    elif path:
        node.update_kwarg(linear.bias, None)


def _has_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return any(isinstance(item, Tensor) for item in (value if isinstance(value, (tuple, list)) else (value,)))
