"""Restack: what a loop takes position by position, computes and stacks again is computed for all positions at once.

    stack([select(x, d, 0).relu(), …, select(x, d, n − 1).relu()], p)      relu(x), with d moved to p
    stack([unbind(x, d)[n − 1], …, unbind(x, d)[0]], p)                    flip(x), with d moved to p

The positions are taken in their order or in reverse, and what is computed is pointwise and the same for each, so that the values are the
same to the bit. Without this, each position is a value of its own, and none of them can go.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxprune.ir import bind, call
from fxprune.ir.edit import move_uses
from fxprune.rules import is_written
from fxprune.rules.aten.pointwise import is_pointwise

aten = torch.ops.aten

_DEEPEST = 16
"""A chain of more operators than this between taking and stacking is left alone."""


def restack(graph: fx.GraphModule) -> None:
    """Replace each such stack."""
    for node in graph.graph.find_nodes(op="call_function", target=aten.stack.default):
        items, rank = node.args[0], node.meta["val"].dim()
        with graph.graph.inserting_before(node):
            whole = _joined(graph, items, _DEEPEST) if len(items) > 1 else None
            if whole is None or whole.meta["val"].dim() != rank or whole.meta["val"].shape[-1] != len(items):
                continue
            order = list(range(rank - 1))
            order.insert(bind(node)["dim"].value % rank, rank - 1)
            move_uses(graph, node, _permuted(graph, whole, order))


def _permuted(graph: fx.GraphModule, value: fx.Node, order: list[int]) -> fx.Node:
    return value if order == sorted(order) else call(graph, aten.permute.default, (value, order))


def _joined(graph: fx.GraphModule, items: Sequence[Any], depth: int) -> fx.Node | None:
    """Return a value that has the items along its last dim (of size 1 where all are the same value), or None."""
    if depth == 0 or any(is_written(item) for item in items):
        return None
    if len({*items}) == 1:
        return call(graph, aten.unsqueeze.default, (items[0], -1))
    taken = [_taken(item) for item in items]
    if None not in taken:
        return _source(graph, taken)
    return _computed(graph, items, depth)


def _taken(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """Return (value, dim, position) of a node that takes one position of a value along a dim of fixed size."""
    args: tuple[Any, ...] = node.args
    if node.target is aten.select.int:
        source, dim, position = args
    elif node.target is operator.getitem and args[0].target is aten.unbind.int:
        source, dim, position = args[0].args[0], bind(args[0])["dim"].value, args[1]
    else:
        return None
    shape = source.meta["val"].shape
    if not all(isinstance(number, int) for number in (dim, position, shape[dim])) or is_written(source):
        return None
    return source, dim % len(shape), position % shape[dim]


def _source(graph: fx.GraphModule, taken: Sequence[Any]) -> fx.Node | None:
    """Return the value that all positions are taken from, with their dim as the last one, in the order in which they are taken."""
    source, dim, _ = taken[0]
    positions = [position for *_, position in taken]
    ahead = list(range(source.meta["val"].shape[dim]))
    if any(one[:2] != (source, dim) for one in taken) or positions not in (ahead, ahead[::-1]):
        return None
    order = [i for i in range(source.meta["val"].dim()) if i != dim]
    moved = _permuted(graph, source, [*order, dim])
    return moved if positions == ahead else call(graph, aten.flip.default, (moved, [-1]))


def _computed(graph: fx.GraphModule, items: Sequence[fx.Node], depth: int) -> fx.Node | None:
    """Return the pointwise operator that made all the items, called once."""
    first = items[0]
    sources = first.all_input_nodes
    plain = is_pointwise(first.target) and not first.target._schema.is_mutable  # type: ignore[union-attr]
    alike = all(_form(item) == _form(first) for item in items)
    if not (plain and alike and len({source.meta["val"].dtype for source in sources}) == 1):
        return None
    columns = zip(*(_operands(item) for item in items), strict=True)
    joined = [_joined(graph, column, depth - 1) for column in columns]
    if None in joined:
        return None
    given = iter(joined)
    args, kwargs = fx.map_arg((first.args, first.kwargs), lambda _: next(given))
    return call(graph, first.target, args, kwargs)


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the values among a node's arguments, in order and with repetitions."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _form(node: fx.Node) -> tuple[Any, ...]:
    """Return an operator and its arguments, without the values among them."""
    return node.target, *fx.map_arg((node.args, dict(node.kwargs)), lambda _: None)
