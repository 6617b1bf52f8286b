"""Own orders: a constant that puts the positions of a dim into another order gets one form, and each use a constant of its own.

    index_select(x, 1, order)     becomes     index(x, [None, order])

Such a constant is cut and renumbered with the dim: two uses of one would tie their dims. `index_select` remains the form of positions that
are chosen, with which what reads them may choose others (see `fxprune.rewrite.shared_tables`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from fxprune.ir import attribute
from fxprune.ir.edit import STANDS_FOR, add_buffer, own_tensors

aten = torch.ops.aten


def own_orders(graph: fx.GraphModule) -> None:
    """Give each reordering of a dim by a constant the form `index`, and a buffer of its own where others read it, too."""
    for node, place, order in list(_orders(graph)):
        mine = order
        if len(order.users) > 1:
            with graph.graph.inserting_before(node):
                mine = add_buffer(graph, f"_own_{order.name}", attribute(graph, str(order.target)).clone())
            mine.meta[STANDS_FOR] = own_tensors(order)
        node.target, node.args = aten.index.Tensor, (node.args[0], [*[None] * place, mine])


def _orders(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, int, fx.Node]]:
    """Yield (node, dim, constant) where a constant contains all positions of the dim once, not in their own order."""
    for node in graph.graph.nodes:
        if node.target is aten.index_select.default:
            place, order = int(node.args[1]) % max(1, node.args[0].meta["val"].dim()), node.args[2]
        elif node.target is aten.index.Tensor and sum(each is not None for each in node.args[1]) == 1:
            place, order = next((i, each) for i, each in enumerate(node.args[1]) if each is not None)
        else:
            continue
        if _moves(graph, order, node.args[0].meta["val"].shape[place : place + 1]):
            yield node, place, order


def _moves(graph: fx.GraphModule, order: Any, sizes: Any) -> bool:
    if order.op != "get_attr" or order.meta["val"].dtype != torch.int64 or order.meta["val"].shape != sizes:
        return False
    value = attribute(graph, str(order.target))
    places = [] if value.is_meta else (value % len(value)).tolist()
    return sorted(places) == [*range(len(value))] != places
