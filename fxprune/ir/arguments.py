"""Node arguments: binding to the operator's schema and back, and integer values of sizes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Node

Path: TypeAlias = tuple[str | int, ...]

_UNKNOWN = 17
"""The stand-in for a symbol whose value depends on data."""


def hint(size: Any) -> int:
    """A size as a number: a symbolic one by its value in the example inputs, a data-dependent one by a stand-in."""
    if isinstance(size, int):
        return size
    value = getattr(size.node, "hint", None)
    return int(value) if value is not None else _stand_in(size)


def _stand_in(size: Any) -> int:
    expression = size.node.expr
    known = getattr(size.node.shape_env, "backed_var_to_val", {})
    value = expression.xreplace({symbol: known.get(symbol, _UNKNOWN) for symbol in expression.free_symbols})
    return max(0, int(value))


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The sizes of a tensor value; None for any other value."""
    return tuple(hint(size) for size in value.shape) if isinstance(value, torch.Tensor) else None


@dataclass(frozen=True)
class Argument:
    """A bound argument: its value and its path in the node (None for a default)."""

    value: Any
    path: Path | None


def as_int(value: Any) -> int:
    """An integer argument as a number: a literal, a symbolic size, or the node of one."""
    if isinstance(value, Node):
        value = value.meta["val"]
    return hint(value)


def bind(node: Node) -> dict[str, Argument]:
    """The node's arguments by the names of the operator's schema, defaults included; by position where it has no schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): Argument(value, ("args", i)) for i, value in enumerate(node.args)}
    bound: dict[str, Argument] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(node.args):
            bound[argument.name] = Argument(node.args[i], ("args", i))
        elif argument.name in node.kwargs:
            bound[argument.name] = Argument(node.kwargs[argument.name], ("kwargs", argument.name))
        else:
            bound[argument.name] = Argument(argument.default_value, None)
    return bound


def unbind(node: Node, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of a node from the values of all arguments of its operator's schema, by name: the inverse of `bind`."""
    keyed = {argument.name for argument in node.target._schema.arguments if argument.kwarg_only}  # type: ignore[union-attr]
    plain = tuple(value for name, value in given.items() if name not in keyed)
    return plain, {name: value for name, value in given.items() if name in keyed}


def with_sources(nodes: Iterable[Node], known: Container[Node] = ()) -> set[Node]:
    """The nodes, and all that they are computed from; those that are known, and what lies behind them, left out."""
    found, waiting = set[Node](), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in known:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def operands(node: Node) -> Iterator[Node]:
    """The nodes among a node's arguments, in order, those within lists included."""
    stack: list[Any] = [*node.args, *node.kwargs.values()]
    while stack:
        item = stack.pop(0)
        if isinstance(item, Node):
            yield item
        elif isinstance(item, (list, tuple)):
            stack[:0] = item
