"""Weight computations: the values of a graph that are computed from parameters and buffers alone, and which of them hinder dims."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import analyze
from fxprune.ir import Program, attribute, bind, operands, storage_key
from fxprune.ir.arguments import with_sources
from fxprune.ir.random_values import may_draw
from fxprune.rules import find_rule, is_written, traits_of
from fxprune.rules.aliasing import is_mutable
from fxprune.rules.aten.pointwise import is_pointwise


@dataclass
class WeightComputations:
    """The values of a graph that are computed from parameters and buffers alone.

    `learned` depend on a parameter; `hindered` are computed by an operator that hinders dims, `layered` by a layer that is applied to a
    constant (learned queries through their projection, positions through a network).
    """

    graph: fx.GraphModule
    constant: set[fx.Node] = field(default_factory=set)
    learned: set[fx.Node] = field(default_factory=set)
    hindered: set[fx.Node] = field(default_factory=set)
    layered: set[fx.Node] = field(default_factory=set)

    @cached_property
    def readers(self) -> dict[Any, list[fx.Node]]:
        """The nodes that read each parameter and buffer, tied ones as one."""
        found: dict[Any, list[fx.Node]] = {}
        for node in self.graph.graph.find_nodes(op="get_attr"):
            found.setdefault(storage_key(self.tensor(node)), []).append(node)
        return found

    def tensor(self, node: fx.Node) -> Any:
        """Return the parameter, the buffer or the object that a node reads."""
        return attribute(self.graph, str(node.target))

    def is_weight(self, node: fx.Node) -> bool:
        """Return whether a value is a weight that is computed in a way that hinders its dims."""
        value = node.meta.get("val")
        floating = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        return floating and node in self.hindered & self.learned and node not in self.layered

    def weights(self) -> list[fx.Node]:
        """Return the weights that the rest of the graph reads, in graph order."""
        weights = (node for node in self.graph.graph.nodes if node in self.hindered and self.is_weight(node))
        return [node for node in weights if any(user not in self.constant for user in node.users)]

    def cone(self, values: Iterable[fx.Node]) -> list[fx.Node]:
        """Return the values and all that they are computed from, in graph order."""
        return sorted(with_sources(values))

    def sources(self, value: fx.Node) -> list[fx.Node]:
        """Return the parameters that a value is computed from, in graph order."""
        return [node for node in self.cone([value]) if node.op == "get_attr" and node in self.learned]

    def spread(self, kind: set[fx.Node]) -> None:
        """Add the constants that are computed from one of a kind."""
        for node in self.graph.graph.nodes:
            if node in self.constant and any(source in kind for source in operands(node)):
                kind.add(node)


def weight_computations(program: Program) -> WeightComputations:
    """Return what a program computes from parameters and buffers alone; it is analysed only where that may hinder dims."""
    found = WeightComputations(program.graph_module)
    for node in program.graph.nodes:
        if _is_constant(found, node):
            found.constant.add(node)
            if node.op == "get_attr" and isinstance(found.tensor(node), nn.Parameter):
                found.learned.add(node)
    found.spread(found.learned)
    computed = (node for node in found.learned if node.op == "call_function" and not _is_plain(node))
    suspects = set(computed)
    if suspects:
        found.hindered |= suspects & _hindering(program)
        found.layered |= {node for node in found.constant if _is_layer(found, node)}
        found.spread(found.hindered)
        found.spread(found.layered)
    return found


def _is_constant(found: WeightComputations, node: fx.Node) -> bool:
    """Return whether a value depends on parameters and buffers alone: on no input, nothing random, written or symbolic."""
    if node.op == "get_attr":
        return isinstance(found.tensor(node), Tensor) and not is_written(node)
    if node.op != "call_function" or not all(source in found.constant for source in operands(node)):
        return False
    known = node.target is operator.getitem or isinstance(node.target, torch._ops.OpOverload)
    changed = may_draw(node) or is_mutable(node) or is_written(node)
    return known and not changed and _has_fixed_sizes(node.meta.get("val"))


def _has_fixed_sizes(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_has_fixed_sizes, value))
    return isinstance(value, Tensor) and all(isinstance(size, int) for size in value.shape)


def _is_plain(node: fx.Node) -> bool:
    """Return whether an operator only scales, moves or picks what it is given."""
    row = traits_of(node.target)
    moves = bool(row.moves or row.passes or row.indices or row.shape_only)
    return moves or node.target is operator.getitem or is_pointwise(node.target)


def _hindering(program: Program) -> set[fx.Node]:
    """Return the nodes that sum, choose or normalise over a dim, have no rule, or pin dims and mix what lies along them."""
    flow = analyze(program).flow
    sums, choices = {each.node for each in flow.contractions}, {each.node for each in flow.choices}
    pinning = {node for _, node in flow.pins if _loses_zeros(node)}
    return sums | choices | {node for _, _, node in flow.inexact} | flow.unknown.keys() | pinning


def _loses_zeros(node: fx.Node) -> bool:
    rule = find_rule(node.target) if node.op == "call_function" else None
    return rule is not None and rule.zero == "lose"


def _is_layer(found: WeightComputations, node: fx.Node) -> bool:
    """Return whether a node applies a layer to a constant, as `linear` does to learned queries, and an einsum to positions.

    A layer has an operand that is its weight by name, which `matmul` has not.
    """
    if traits_of(node.target).mixes:
        return any(source not in found.learned for source in operands(node))
    return _layer_input(node) is not None and not _is_matrix(found, node)


def _layer_input(node: fx.Node) -> Any:
    """Return what a layer is applied to; None for any other node."""
    row = traits_of(node.target).linear
    return bind(node)[row.input].value if row is not None and row.weight == "weight" else None


def _is_matrix(found: WeightComputations, node: fx.Node) -> bool:
    """Return whether a value is an identity, or what layers make of one: the product of their weights."""
    given = _layer_input(node)
    if isinstance(given, fx.Node):
        return _is_matrix(found, given)
    value = found.tensor(node) if node.op == "get_attr" and node not in found.learned else None
    if value is None or value.is_meta or value.dim() != 2:
        return False
    return torch.equal(value, torch.eye(*value.shape, dtype=value.dtype, device=value.device))
