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

#: operators whose result contains values of their first operand, at other positions, in another dtype or in part
VALUE_PRESERVING = frozenset(
    (
        *(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.unsqueeze, aten.squeeze),
        *(aten.expand, aten.clone, aten.contiguous, aten.to, aten._to_copy, aten.type_as, aten.detach, aten.alias),
        *(aten.transpose, aten.t, aten.permute, aten.movedim, aten.select, aten.slice, aten.narrow, aten.repeat),
        *(aten.repeat_interleave, aten.index, aten.index_select, aten.gather),
        *(aten.split, aten.split_with_sizes, aten.unbind, aten.chunk, aten.sort),
    )
)  # fmt: skip

CASTS = (aten.to, aten._to_copy)
JOINED = frozenset((aten.cat, aten.concat, aten.stack))

#: operator: the argument that contains numbers of the dim that it reads, counts or writes
LOOKUPS: dict[Any, str] = {
    aten.gather: "index",
    aten.index: "indices",
    aten.index_select: "index",
    aten.embedding: "indices",
    aten.scatter: "index",
    aten.one_hot: "self",
    aten.histc: "self",
}

#: operators that read only sizes, or an order that renumbering preserves
RENUMBERING_INVARIANT = frozenset(
    (aten.sym_size, aten.argsort, aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like)
)


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


def packet(node: fx.Node) -> Any:
    """The target of a node; of an overload, its packet."""
    return node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else node.target


def _record(node: fx.Node, found: Routing, varies: set[fx.Node]) -> None:
    numbers = _numbers(node, found)
    if numbers is not None:
        found.numbers[node] = numbers
    first: Any = node.args[0] if node.args else None
    if packet(node) is aten.histc and first in found.numbers and _one_bin_each(node):
        found.counts[node] = found.numbers[first]
    if packet(node) in (*CASTS, aten.cumsum) and first in found.counts:
        table = found.offsets if packet(node) is aten.cumsum else found.counts
        table[node] = found.counts[first]
    if packet(node) in CASTS and first in found.offsets:
        found.offsets[node] = found.offsets[first]
    if packet(node) is aten.scatter and _excludes(node, found):
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
        chooser = packet(source)
        if chooser in SELECTION_OPS:
            return candidates(source) if node.args[1] == SELECTION_OPS[chooser] else None
        if chooser is aten.sort and node.args[1] != 0:
            return None
        return found.numbers.get(source.args[0]) if chooser in VALUE_PRESERVING else None
    if packet(node) in JOINED and all(one in found.numbers for one in source):
        several = [found.numbers[one] for one in source]
        found.same += [(several[0], other, node) for other in several[1:]]
        return several[0]
    if packet(node) in SELECTION_OPS and SELECTION_OPS[packet(node)] is None:
        return candidates(node)
    passes = packet(node) in VALUE_PRESERVING and not isinstance(node.meta.get("val"), (tuple, list))
    return found.numbers.get(source) if passes else None


def candidates(node: fx.Node) -> Candidates | None:
    """The candidates of a choosing node; None where it chooses over all positions of several dims, or between two tensors."""
    bound = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs  # type: ignore[union-attr]
    value: Any = bound.get("self")
    dim: Any = bound.get("dim", -1 if packet(node) is aten.topk else None)
    if not isinstance(value, fx.Node) or not isinstance(dim, int):
        return None
    return Candidates(value, dim % max(1, value.meta["val"].dim()))


def _one_bin_each(node: fx.Node) -> bool:
    """Whether a histogram counts each number apart: histc(ids, bins, 0, bins − 1)."""
    _, bins, low, high = (*node.args, None, None, None)[:4]
    return isinstance(bins, int) and bool(low == 0 and high == bins - 1)


def _survives(node: fx.Node, user: fx.Node, numbers: Container[fx.Node]) -> bool:
    """Whether a reader of numbers gives the same result after units that are never chosen are removed and the others renumbered."""
    if packet(user) in RENUMBERING_INVARIANT:
        return True
    if packet(user) in VALUE_PRESERVING and user.args[0] is node:
        return node not in _inner(user.args[1:])
    if packet(user) in JOINED:
        return user in numbers
    if packet(user) not in LOOKUPS:
        return False
    names = [argument.name for argument in user.target._schema.arguments]  # type: ignore[union-attr]
    places = [names[i] for i, value in enumerate(user.args) if value is node or node in _inner([value])]
    return places == [LOOKUPS[packet(user)]] and (packet(user) is not aten.histc or _one_bin_each(user))


def _inner(values: Any) -> list[Any]:
    """The members of the lists among some arguments."""
    return [item for value in values if isinstance(value, (list, tuple)) for item in value]


def _is_logits(node: fx.Node, found: Routing, varies: set[fx.Node]) -> bool:
    """Whether a value is a product with a weight, or computed from one position by position."""
    args: tuple[Any, ...] = node.args
    if packet(node) in (aten.linear, aten.matmul, aten.mm):
        return args[0] in varies and args[1] not in varies and args[1].meta["val"].dim() > 1
    if packet(node) is aten.addmm:
        return args[1] in varies and args[2] not in varies
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()) and packet(node) not in CASTS:
        return False
    carriers = [arg for arg in args if isinstance(arg, fx.Node) and arg in found.logits]
    return any(_same_width(arg, node) for arg in carriers)


def _same_width(one: fx.Node, other: fx.Node) -> bool:
    return bool(one.meta["val"].shape[-1:] == other.meta["val"].shape[-1:])
