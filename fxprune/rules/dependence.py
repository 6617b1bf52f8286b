"""Dependence: the values that are computed from others, and which of their atoms come from those and which from weights alone; divisors.

linear(x, w)   all atoms depend on x: each entry of the result is a sum over entries of x
w * g(x)       the atoms of w alone do not: an input scales a weight
ones_like(x)   depends on the shape of x, not on its values
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.dims import Dim, leaves
from fxprune.ir import bind, operands
from fxprune.rules.aliasing import is_mutable, returns_alias, writes
from fxprune.rules.aten.pointwise import is_pointwise
from fxprune.rules.facts import Flow
from fxprune.rules.traits import packet_of, traits_of

aten = torch.ops.aten

Atoms: TypeAlias = dict[fx.Node, set[Dim]]


def atoms_by_value(flow: Flow) -> Atoms:
    """Return the atoms of each value's dims (of several results: of all), in graph order."""
    return {
        node: {leaf for dim in pytree.tree_leaves(dims) for leaf in leaves(dim)}
        for node, dims in flow.dims.items()
    }


def dependents(atoms: Atoms, seeds: Mapping[fx.Node, set[Dim]]) -> Atoms:
    """Return the values that are computed from seeds, with those of their atoms that come from a seed's atoms or from sums.

    A value that is written into depends, from then on, on what is written.
    """
    found: Atoms = {}
    for node, all_atoms in atoms.items():
        sources = [found[source] for source in operands(node) if source in found]
        if sources and not traits_of(node.target).shape_only:
            found[node] = all_atoms & set().union(*sources) if _scales(node) else all_atoms
            for value in _written(node):
                found[value] = found.get(value, set()) | (found[node] & atoms.get(value, set()))
        if node in seeds:
            found[node] = found.get(node, set()) | seeds[node]
    return found


def _scales(node: fx.Node) -> bool:
    """Return whether each entry of the result is computed from one entry of each operand, wherever that lies."""
    row = traits_of(node.target)
    moved = bool(row.passes) or row.moves not in ("", "pick")
    return moved or node.target is operator.getitem or is_pointwise(node.target)


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the values that a node writes into: operands, and what these are views of."""
    if not is_mutable(node):
        return
    for source in operands(node):
        value = source
        if writes(node, source):
            yield value
            while value.op == "call_function" and returns_alias(value):
                value = value.all_input_nodes[0]
                yield value


_POWERS = (aten.pow, aten.pow_, aten.float_power, aten.float_power_)


def divisions(flow: Flow) -> list[tuple[fx.Node, fx.Node]]:
    """Return (node, an operand at whose zeros it is infinite or no number), in graph order."""
    found = ((node, by) for node in flow.dims for by in _divisors(node))
    return [(node, by) for node, by in found if isinstance(by, fx.Node) and by in flow.dims]


def _divisors(node: fx.Node) -> list[Any]:
    bound = bind(node)
    if packet_of(node.target) not in _POWERS:
        return [bound[name].value for name in traits_of(node.target).divides.split() if name in bound]
    exponent = bound["exponent"].value
    return [] if isinstance(exponent, (int, float)) and exponent >= 0 else [bound["self"].value]
