"""Routing: values whose contents are positions along a dim of another value ("numbers"), and the operators that read them.

    scores [t, e] ── topk ── getitem 1: ids [t, k], numbers of e ── sort, index, view … ── gather(probs, ids), index(weight, [ids]),
                                                                                          histc(ids, e) ── cumsum: offsets

A dim that is indexed by value can shrink where every reader of the numbers indexes that same dim: the remaining positions are renumbered
in their old order, so ids stay consistent (and sorted where they were). In this way the experts of a mixture become an axis.
The analysis uses the graph alone, before any dim is known.
"""

from __future__ import annotations

import operator
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx

from fxprune.ir import bind
from fxprune.rules.traits import packet_of, traits_of

aten = torch.ops.aten


class Candidates(NamedTuple):
    """The dimension of a value whose positions are the candidates of a choice."""

    value: fx.Node
    place: int


@dataclass
class Routing:
    """Values that contain numbers of candidates, with their counts and offsets, and how they are read.

    `numbers`: values whose contents are positions of candidates; `counts`, `offsets`: the number of rows of each candidate, and where they
    end. `strays`: for candidates, a node that reads their numbers in a way not known to survive renumbering. `same`: candidates whose
    numbers are concatenated (at a node), so that they must be one dim. `excluded`: values in which candidates that were chosen before
    can't be chosen again, and how many. `logits`: values whose last dim is the output of a weight, such as a router's.
    """

    numbers: dict[fx.Node, Candidates] = field(default_factory=dict)
    counts: dict[fx.Node, Candidates] = field(default_factory=dict)
    offsets: dict[fx.Node, Candidates] = field(default_factory=dict)
    strays: dict[Candidates, fx.Node] = field(default_factory=dict)
    same: list[tuple[Candidates, Candidates, fx.Node]] = field(default_factory=list)
    excluded: dict[fx.Node, int] = field(default_factory=dict)
    logits: set[fx.Node] = field(default_factory=set)


#: operator: the result (None: the only one) that contains the positions of the chosen
SELECTION_OPS: dict[Any, int | None] = {
    aten.topk: 1,
    aten.max: 1,
    aten.min: 1,
    aten.argmax: None,
    aten.argmin: None,
}


def routing(nodes: list[fx.Node], varies: set[fx.Node]) -> Routing:
    """The routing of a graph; `varies` are the values that depend on an input."""
    found = Routing()
    for node in nodes:
        if node.op == "call_function":
            _record(node, found, varies)
    for node, candidates in found.numbers.items():
        for user in node.users:
            if not _survives(node, user, found.numbers):
                found.strays.setdefault(candidates, user)
    return found


def _preserves_values(target: Any) -> bool:
    """Whether the result contains values of the first operand, at other positions, in another dtype or in part."""
    row = traits_of(target)
    return row.moves not in ("", "join") or row.passes in ("alias", "cast", "copy")


def _is_cast(node: fx.Node) -> bool:
    return traits_of(node.target).passes == "cast"


def _record(node: fx.Node, found: Routing, varies: set[fx.Node]) -> None:
    numbers = _numbers(node, found)
    if numbers is not None:
        found.numbers[node] = numbers
    first: Any = node.args[0] if node.args else None
    packet = packet_of(node.target)
    if packet is aten.histc and first in found.numbers and _one_bin_each(node):
        found.counts[node] = found.numbers[first]
    if (packet is aten.cumsum or _is_cast(node)) and first in found.counts:
        table = found.offsets if packet is aten.cumsum else found.counts
        table[node] = found.counts[first]
    if _is_cast(node) and first in found.offsets:
        found.offsets[node] = found.offsets[first]
    if packet is aten.scatter and _excludes(node, found):
        found.excluded[node] = found.excluded.get(first, 0) + _chosen_before(node)
    if _is_logits(node, found, varies):
        found.logits.add(node)


def _excludes(node: fx.Node, found: Routing) -> bool:
    return len(node.args) == 4 and node.args[2] in found.numbers and bool(node.args[3] == float("-inf"))


def _chosen_before(node: fx.Node) -> int:
    _, place, index = node.args[:3]
    return int(index.meta["val"].shape[place])  # type: ignore[union-attr]


def _numbers(node: fx.Node, found: Routing) -> Candidates | None:
    source: Any = node.args[0] if node.args else None
    if node.target is operator.getitem:
        chooser = packet_of(source.target)
        if chooser in SELECTION_OPS:
            return candidates(source) if node.args[1] == SELECTION_OPS[chooser] else None
        if chooser is aten.sort and node.args[1] != 0:
            return None
        return found.numbers.get(source.args[0]) if _preserves_values(source.target) else None
    if traits_of(node.target).moves == "join" and all(one in found.numbers for one in source):
        several = [found.numbers[one] for one in source]
        found.same += [(several[0], other, node) for other in several[1:]]
        return several[0]
    if SELECTION_OPS.get(packet_of(node.target), 0) is None:
        return candidates(node)
    passes = _preserves_values(node.target) and not isinstance(node.meta.get("val"), (tuple, list))
    return found.numbers.get(source) if passes else None


def candidates(node: fx.Node) -> Candidates | None:
    """The candidates of a choosing node; None where it chooses over all positions of several dims, or between two tensors."""
    bound = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs  # type: ignore[union-attr]
    value: Any = bound.get("self")
    dim: Any = bound.get("dim", -1 if packet_of(node.target) is aten.topk else None)
    if not isinstance(value, fx.Node) or not isinstance(dim, int):
        return None
    return Candidates(value, dim % max(1, value.meta["val"].dim()))


def _one_bin_each(node: fx.Node) -> bool:
    """Whether a histogram counts each number apart: histc(ids, bins, 0, bins − 1)."""
    _, bins, low, high = (*node.args, None, None, None)[:4]
    return isinstance(bins, int) and bool(low == 0 and high == bins - 1)


def _survives(node: fx.Node, user: fx.Node, numbers: Container[fx.Node]) -> bool:
    """Whether a reader of numbers gives the same result after units that are never chosen are removed and the others renumbered."""
    row, packet = traits_of(user.target), packet_of(user.target)
    if row.shape_only or packet is aten.argsort:  # renumbering keeps the order
        return True
    if _preserves_values(user.target) and user.args[0] is node:
        return node not in _inner(user.args[1:])
    if row.moves == "join":
        return user in numbers
    if not row.indices:
        return False
    names = [argument.name for argument in user.target._schema.arguments]  # type: ignore[union-attr]
    places = [names[i] for i, value in enumerate(user.args) if value is node or node in _inner([value])]
    return places == [row.indices] and (packet is not aten.histc or _one_bin_each(user))


def _inner(values: Any) -> list[Any]:
    """The members of the lists among some arguments."""
    return [item for value in values if isinstance(value, (list, tuple)) for item in value]


def _is_logits(node: fx.Node, found: Routing, varies: set[fx.Node]) -> bool:
    """Whether a value is a product with a weight, or computed from one position by position."""
    args: tuple[Any, ...] = node.args
    linear = traits_of(node.target).linear
    if linear is not None and linear.matrix and not linear.spatial:
        source, weight = (bind(node)[name].value for name in (linear.input, linear.weight))
        return source in varies and weight not in varies and weight.meta["val"].dim() > 1
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()) and not _is_cast(node):
        return False
    carriers = [arg for arg in args if isinstance(arg, fx.Node) and arg in found.logits]
    return any(_same_width(arg, node) for arg in carriers)


def _same_width(one: fx.Node, other: fx.Node) -> bool:
    return bool(one.meta["val"].shape[-1:] == other.meta["val"].shape[-1:])
