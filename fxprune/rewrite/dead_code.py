"""Dead-code elimination, and removal of operators that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.ir.edit import move_uses
from fxprune.rules import is_written, traits_of
from fxprune.rules.aliasing import is_dead_write, is_mutable

aten = torch.ops.aten


def remove_dead(graph: fx.GraphModule) -> int:
    """Erase nodes that no result needs, and weights that no node reads; return the number of erased nodes.

    FX's own dead-code elimination keeps dropout and attention, which it treats as impure; here only writes and higher-order operators are.
    """
    gone = erase_dead(graph.graph)
    _drop_unread(graph)
    return gone


def erase_dead(graph: fx.Graph) -> int:
    """Erase nodes that no result needs; return their number."""
    gone = 0
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in reversed(order):
        if node.users or node.op in ("placeholder", "output"):
            continue
        if not _has_effect(node) or is_dead_write(node, order):
            graph.erase_node(node)
            gone += 1
    return gone


def _has_effect(node: fx.Node) -> bool:
    return is_mutable(node) or isinstance(node.target, torch._ops.HigherOrderOperator)


def _drop_unread(graph: fx.GraphModule) -> None:
    read = {str(node.target) for node in graph.graph.find_nodes(op="get_attr")}
    for path, module in list(graph.named_modules(remove_duplicate=False)):
        for store in (module._parameters, module._buffers):
            for name in [n for n in store if f"{path}.{n}".lstrip(".") not in read]:
                del store[name]
    graph.delete_all_unused_submodules()


def drop_idle(graph: fx.GraphModule) -> None:
    """Remove movements whose result is their operand: whole slices, views and expansions to the same sizes."""
    pass_on(graph, lambda node: _is_movement(node.target) and _same_sizes(node))


def _is_movement(target: Any) -> bool:
    """Return whether a result of the operand's sizes is the operand."""
    in_order = traits_of(target).moves in ("view", "flatten", "expand")
    return in_order or target in (aten.slice.Tensor, aten.contiguous.default)


def pass_on(graph: fx.GraphModule, is_idle: Callable[[fx.Node], bool]) -> None:
    """Replace operators that do nothing by their operand, unless something writes into either."""
    for node in list(graph.graph.nodes):
        if is_idle(node) and not is_written(node) and not is_written(node.args[0]):
            move_uses(graph, node, node.args[0])


def _same_sizes(node: fx.Node) -> bool:
    """Return whether a result has the sizes of its operand, symbolically; a slice of equal sizes starts at 0 with step 1."""
    before, after = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
    return len(before) == len(after) and all(map(_same, before, after))


def _same(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, int) and isinstance(other, int) else str(one) == str(other)
