"""Aliasing and mutation: the values of a graph that are written in place, directly or through a view."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import fx

from fxprune.ir import bind
from fxprune.rules.traits import traits_of


def returns_alias(node: fx.Node) -> bool:
    """Whether a node's result may share memory with an operand."""
    if node.target is operator.getitem or traits_of(node.target).aliases:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def writes(user: fx.Node, node: fx.Node) -> bool:
    """Whether an operator writes into this operand."""
    schema = getattr(user.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    bound = bind(user)
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return any(bound[name].value is node for name in written)


def is_written(node: fx.Node) -> bool:
    """Whether some operator writes into this value, or into a view of it."""
    return any(
        writes(user, node) or (returns_alias(user) and not is_mutable(user) and is_written(user))
        for user in node.users
    )


def is_dead_write(node: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether a write goes to memory that the graph allocates and that nothing reads afterwards.

    `order` gives the position of each node in the graph.
    """
    shared: set[fx.Node] = set()
    waiting = [source for source in node.all_input_nodes if writes(node, source)]
    while waiting:
        value = waiting.pop()
        if value in shared:
            continue
        shared.add(value)
        waiting += value.all_input_nodes if returns_alias(value) else []
        waiting += [user for user in value.users if returns_alias(user)]
    shared.discard(node)
    made_here = bool(shared) and all(value.op == "call_function" for value in shared)
    return made_here and not any(order[user] > order[node] for value in shared for user in value.users)


def is_mutable(node: fx.Node) -> bool:
    """Whether an operator writes into an operand."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)
