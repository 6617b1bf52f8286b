"""ONNX forms of reductions, running products, order statistics, searches and distances."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from fxprune.ir import bind, call
from fxprune.ir.edit import move_uses
from fxprune.rules import packet_of

aten = torch.ops.aten

#: what running values are joined by
RUNNING: dict[Any, Any] = {
    aten.cumprod: aten.mul.Tensor,
    aten.cummax: aten.maximum.default,
    aten.cummin: aten.minimum.default,
}


def values_of(node: fx.Node) -> dict[str, Any]:
    """Return the values of a node's arguments by name."""
    return {name: argument.value for name, argument in bind(node).items()}


def reads_values_only(node: fx.Node) -> bool:
    """Return whether of an operator's results (values, positions) only the values are read."""
    return all(user.args[1] == 0 for user in node.users)


def give_values(graph: fx.GraphModule, node: fx.Node, values: fx.Node) -> None:
    """Replace the first of a node's results."""
    for user in list(node.users):
        move_uses(graph, user, values)


def running(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return running products or maxima by doubling: each position with as many before it, then with twice as many."""
    bound = values_of(node)
    several = isinstance(node.meta["val"], (tuple, list))
    value = node.meta["val"][0] if several else node.meta["val"]
    dim, size = bound["dim"], value.shape[bound["dim"]] if value.dim() else 1
    if not isinstance(size, int) or not size or (several and not reads_values_only(node)):
        return None
    made: Any = call(graph, aten.to.dtype, (bound["self"], value.dtype))
    for reach in (2**power for power in range((size - 1).bit_length())):
        first = call(graph, aten.slice.Tensor, (made, dim, 0, reach))
        later = call(graph, aten.slice.Tensor, (made, dim, reach, size))
        before = call(graph, aten.slice.Tensor, (made, dim, 0, size - reach))
        joined = call(graph, RUNNING[packet_of(node.target)], (later, before))
        made = call(graph, aten.cat.default, ([first, joined], dim))
    if not several:
        return made  # type: ignore[no-any-return]
    give_values(graph, node, made)
    return None


def ranked_value(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the k-th smallest value, or the median, as the last of the k smallest; stays where positions are read."""
    bound, source = values_of(node), node.args[0]
    several = isinstance(node.meta["val"], (tuple, list))
    if several and not reads_values_only(node):
        return None
    if "dim" not in bound:
        source = call(graph, aten.reshape.default, (source, [-1]))
    dim = bound.get("dim", 0)
    size = source.meta["val"].shape[dim]  # type: ignore[union-attr]
    if not isinstance(size, int):
        return None
    count = bound.get("k", (size + 1) // 2)
    least = call(graph, aten.topk.default, (source, count, dim, False, True))
    value = call(graph, aten.select.int, (call(graph, operator.getitem, (least, 0)), dim, count - 1))
    if bound.get("keepdim"):
        value = call(graph, aten.unsqueeze.default, (value, dim))
    if not several:
        return value
    give_values(graph, node, value)
    return None


def stable_sort(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return a stable sort as a plain one: ONNX's sort keeps the order of equal values, and has no argument for it."""
    bound = values_of(node)
    if "stable" not in bound:
        return None
    return call(graph, aten.sort.default, (bound["self"], bound["dim"], bound["descending"]))


def over_all_dims(graph: fx.GraphModule, node: fx.Node) -> None:
    """Name the dims of a maximum over all of them: the exporter requires them."""
    if not values_of(node)["dim"]:
        node.args = (node.args[0], list(range(node.args[0].meta["val"].dim())), *node.args[2:])  # type: ignore[union-attr]


def kept_position(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the position of an extreme over all dims in as many dims as asked for: the exporter gives one."""
    bound = values_of(node)
    if bound["dim"] is not None or not bound["keepdim"]:
        return None
    place = call(graph, node.target, (node.args[0],))
    return call(graph, aten.reshape.default, (place, [1] * node.meta["val"].dim()))


def searched(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return places in a sorted sequence as counts of what lies before: ONNX has no search."""
    bound = values_of(node)
    table, values = bound["sorted_sequence"], bound["self"]
    if not isinstance(values, fx.Node) or bound["sorter"] is not None:
        return None
    if values.meta["val"].dim():
        table = call(graph, aten.unsqueeze.default, (table, -2))
        values = call(graph, aten.unsqueeze.default, (values, -1))
    right = bound["right"] or bound["side"] == "right"
    before = call(graph, aten.le.Tensor if right else aten.lt.Tensor, (table, values))
    kind = torch.int32 if bound["out_int32"] else torch.int64
    return call(graph, aten.sum.dim_IntList, (before, [-1]), {"dtype": kind})


#: the largest number of rows whose Euclidean distances torch computes by differences, of its own accord
_BY_DIFFERENCES = 25


def distances(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the distances of all rows of one operand to all of the other, as torch computes them: by differences or by a product."""
    bound = values_of(node)
    one, other, p, mode = bound["x1"], bound["x2"], bound["p"], bound.get("compute_mode")
    rows = [value.meta["val"].shape[-2] for value in (one, other)]
    few = all(isinstance(count, int) and count <= _BY_DIFFERENCES for count in rows)
    if p == 2 and mode != 2 and (mode == 1 or not few):
        return _euclidean(graph, one, other)
    pair = (call(graph, aten.unsqueeze.default, (one, -2)), call(graph, aten.unsqueeze.default, (other, -3)))
    size = call(graph, aten.abs.default, (call(graph, aten.sub.Tensor, pair),))
    return length(graph, size, p)


def length(graph: fx.GraphModule, size: fx.Node, p: float) -> fx.Node:
    """Return the p-norm of absolute values over their last dim."""
    if p == math.inf:
        return call(graph, aten.amax.default, (size, [-1]))
    if p == 0:
        differs = call(graph, aten.to.dtype, (call(graph, aten.ne.Scalar, (size, 0)), size.meta["val"].dtype))
        return call(graph, aten.sum.dim_IntList, (differs, [-1]))
    powers = size if p == 1 else call(graph, aten.pow.Tensor_Scalar, (size, p))
    summed = call(graph, aten.sum.dim_IntList, (powers, [-1]))
    return summed if p == 1 else call(graph, aten.pow.Tensor_Scalar, (summed, 1 / p))


def _euclidean(graph: fx.GraphModule, one: fx.Node, other: fx.Node) -> fx.Node:
    """√(|a|² + |b|² − 2ab), not below zero."""
    squares = [
        call(graph, aten.sum.dim_IntList, (call(graph, aten.mul.Tensor, (each, each)), [-1], True))
        for each in (one, other)
    ]
    turned = call(graph, aten.transpose.int, (squares[1], -2, -1))
    mixed = call(graph, aten.matmul.default, (one, call(graph, aten.transpose.int, (other, -2, -1))))
    whole = call(graph, aten.add.Tensor, (squares[0], turned))
    squared = call(graph, aten.sub.Tensor, (whole, call(graph, aten.mul.Tensor, (mixed, 2))))
    return call(graph, aten.sqrt.default, (call(graph, aten.clamp.default, (squared, 0)),))
