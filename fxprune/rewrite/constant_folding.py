"""Clean-up that changes no result: constants are computed once, and what no result needs is removed with its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.ir.aliasing import is_idle_write, is_written
from fxprune.ir.edit import add_buffer, move_uses
from fxprune.ir.program import Program, attribute, copy_graph, rebuild
from fxprune.rules.op import operands

aten = torch.ops.aten

LARGEST = 4_000_000
"""A constant of more elements than this is computed, not stored."""

FILLS = (
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.empty.memory_format,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.scalar_tensor.default,
)
"""Pure fills stay as they are: only their size changes."""


def fold_constants(graph: fx.GraphModule) -> None:
    """What depends on no input and no parameter becomes a buffer; nothing random, written, symbolic, large or on meta does."""
    written = {node for node in graph.graph.nodes if is_written(node)}
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        value = _constant(graph, node, values, written)
        if value is not None:
            values[node] = value
    for node in [n for n in values if _is_frontier(n, values)]:
        _store(graph, node, values[node])


def _constant(graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any], written: set[fx.Node]) -> Any:
    """The value of a node that is constant; None for others."""
    if node.op == "get_attr":
        value = attribute(graph, str(node.target))
        is_buffer = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        return value if is_buffer and value.device.type != "meta" and node not in written else None
    if (
        node.op != "call_function"
        or not _is_foldable(node, written)
        or not all(s in values for s in operands(node))
    ):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_foldable(node: fx.Node, written: set[fx.Node]) -> bool:
    value = node.meta.get("val")
    if not isinstance(node.target, torch._ops.OpOverload) or node in written or not isinstance(value, Tensor):
        return False
    if (
        value.device.type == "meta"
        or not all(isinstance(size, int) for size in value.shape)
        or value.numel() > LARGEST
    ):
        return False
    return torch.Tag.nondeterministic_seeded not in node.target.tags and not node.target._schema.is_mutable


def _is_frontier(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """A computed constant that something else than a constant reads."""
    computed = node.op == "call_function" and node.target not in FILLS
    return computed and any(user not in values for user in node.users)


def _store(graph: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    with graph.graph.inserting_before(node):
        stored = add_buffer(graph, f"_folded_{node.name}", value.detach().clone().contiguous())
    stored.meta.update(
        {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}
    )
    node.replace_all_uses_with(stored)
    graph.graph.erase_node(node)


def remove_dead(graph: fx.GraphModule) -> int:
    """Erase nodes that no result needs, and weights that no node reads; the number of nodes that went.

    FX's own dead-code elimination keeps dropout and attention, which it takes for impure; here only writes and assertions are.
    """
    gone = 0
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in reversed(order):
        if node.users or node.op in ("placeholder", "output"):
            continue
        if not _has_effect(node) or is_idle_write(node, order):
            graph.graph.erase_node(node)
            gone += 1
    _drop_unread(graph)
    return gone


def _has_effect(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if node.op == "get_attr":
        return False
    return (schema is None and node.op == "call_function" and _is_effectful(node.target)) or bool(
        schema and schema.is_mutable
    )


def _is_effectful(target: Any) -> bool:
    return isinstance(target, torch._ops.HigherOrderOperator)


def _drop_unread(graph: fx.GraphModule) -> None:
    read = {str(node.target) for node in graph.graph.find_nodes(op="get_attr")}
    for path, module in list(graph.named_modules(remove_duplicate=False)):
        for store in (module._parameters, module._buffers):
            for name in [n for n in store if f"{path}.{n}".lstrip(".") not in read]:
                del store[name]
    graph.delete_all_unused_submodules()


def fold(program: Program) -> Program:
    """The program with constants computed, operators that do nothing dropped, and weights that no result needs gone."""
    clean = rebuild(program, copy_graph(program), {})
    drop_idle(clean.graph)
    fold_constants(clean.graph)
    remove_dead(clean.graph)
    clean.graph.graph.lint()
    clean.graph.recompile()
    return clean


def drop_idle(graph: fx.GraphModule) -> None:
    """Movements whose result is their operand: whole slices, views and expansions to the same sizes."""
    pass_on(graph, lambda node: node.target in _MOVEMENTS and _same_sizes(node))


def pass_on(graph: fx.GraphModule, is_idle: Callable[[fx.Node], bool]) -> None:
    """Replace operators that do nothing by their operand, unless something writes into either."""
    for node in list(graph.graph.nodes):
        if is_idle(node) and not is_written(node) and not is_written(node.args[0]):
            move_uses(graph, node, node.args[0])


_MOVEMENTS = (
    aten.slice.Tensor,
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.contiguous.default,
)


def _same_sizes(node: fx.Node) -> bool:
    """The same sizes as the operand, symbolically; a slice must start at 0 with step 1 (equal sizes say so)."""
    before, after = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
    return len(before) == len(after) and all(
        _same(one, other) for one, other in zip(before, after, strict=True)
    )


def _same(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, int) and isinstance(other, int) else str(one) == str(other)
