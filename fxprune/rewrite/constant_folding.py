"""Constant folding: compute what depends on no input and no parameter once, and store it in a buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.ir import attribute, operands
from fxprune.ir.edit import STANDS_FOR, add_buffer, own_tensors
from fxprune.ir.random_values import may_draw
from fxprune.rules import is_written, traits_of

LARGEST = 4_000_000
"""A constant of more elements than this is computed in the graph, not stored."""


def fold_constants(graph: fx.GraphModule) -> None:
    """Replace values that depend on no input and no parameter by buffers, except random, written, symbolic, large and meta ones."""
    written = {node for node in graph.graph.nodes if is_written(node)}
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        value = _constant(graph, node, values, written)
        if value is not None:
            values[node] = value
    for node in [n for n in values if _is_frontier(n, values)]:
        _store(graph, node, values[node])


def _constant(graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any], written: set[fx.Node]) -> Any:
    """Return the value of a node that is constant; None for others."""
    if node.op == "get_attr":
        value = attribute(graph, str(node.target))
        is_buffer = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        return value if is_buffer and value.device.type != "meta" and node not in written else None
    known = node.op == "call_function" and all(source in values for source in operands(node))
    if not known or not _is_foldable(node, written):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_foldable(node: fx.Node, written: set[fx.Node]) -> bool:
    value = node.meta.get("val")
    if not isinstance(node.target, torch._ops.OpOverload) or node in written or not isinstance(value, Tensor):
        return False
    if value.device.type == "meta" or not all(isinstance(size, int) for size in value.shape):
        return False
    kind = node.target
    pure = not may_draw(node) and not kind._schema.is_mutable
    return pure and value.numel() <= LARGEST


def _sources(node: fx.Node) -> tuple[str, ...]:
    """Return the user's own tensors that a value was computed from, in the order of the computation."""
    found, stack, seen = dict[str, None](), [node], set[fx.Node]()
    while stack:
        at = stack.pop()
        if at.op == "get_attr":
            found |= dict.fromkeys(own_tensors(at))
        new = [source for source in operands(at) if source not in seen]
        seen.update(new)
        stack += reversed(new)
    return tuple(found)


def _is_frontier(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Return whether a node is a computed constant that a node which is not constant reads; fills stay: only their size changes."""
    computed = node.op == "call_function" and not traits_of(node.target).shape_only
    return computed and any(user not in values for user in node.users)


def _store(graph: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    with graph.graph.inserting_before(node):
        stored = add_buffer(graph, f"_folded_{node.name}", value.detach().clone().contiguous())
    stored.meta[STANDS_FOR] = _sources(node)
    kept = ("stack_trace", "nn_module_stack")
    stored.meta |= {key: node.meta[key] for key in kept if key in node.meta}
    node.replace_all_uses_with(stored)
    graph.graph.erase_node(node)
