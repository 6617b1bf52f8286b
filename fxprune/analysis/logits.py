"""Attention logits: contractions of two values that matrices give, head by head, whatever views lie between.

The channels that a head compares may be written in another basis: Q·Kᵀ = (Q·T)·(K·T⁻ᵀ)ᵀ. That takes that nothing but movements, copies and
scales by one number lie between matrix and contraction (a rotary embedding or a norm does not commute with T), and that nothing else reads
these channels.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from fxprune.analysis.linear_ops import Matrix, matrices
from fxprune.dims import Dim, coordinates, leaves
from fxprune.ir import Program, bind, hint, operands, source_line
from fxprune.rules import Contraction, Flow, passes_value, traits_of

_MOVES = frozenset({"view", "flatten", "expand", "transpose", "reverse", "part"})


@dataclass(frozen=True, eq=False)
class Side:
    """The queries or the keys of a contraction: an operand (`value`), and the matrix whose outputs it is made of.

    `place` is the dimension that is contracted; `heads` are those along which the channels differ, once `place` has moved to the end.
    `channels` [heads, d] are the outputs of the matrix.
    """

    matrix: Matrix
    value: fx.Node
    place: int
    heads: tuple[int, ...]
    channels: Tensor

    def rows(self, value: Tensor) -> Tensor:
        """Return the operand as [heads, rows, d]."""
        return self._heads_first(value).reshape(len(self.channels), -1, self.channels.shape[1])

    def value_of(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return rows as an operand with the shape of `like`: the inverse of `rows`."""
        moved = rows.reshape(self._heads_first(like).shape).movedim(tuple(range(len(self.heads))), self.heads)
        return moved.movedim(-1, self.place).to(like.dtype)

    def _heads_first(self, value: Tensor) -> Tensor:
        return value.movedim(self.place, -1).movedim(self.heads, tuple(range(len(self.heads))))


@dataclass(frozen=True, eq=False)
class Logits:
    """One contraction of queries and keys. `groups` are heads that must have one basis: (those of the queries, those of the keys)."""

    node: fx.Node
    query: Side
    key: Side
    groups: tuple[tuple[list[int], list[int]], ...]


@dataclass(frozen=True, eq=False)
class _Reading:
    """A node that reads a matrix's outputs and moves them no further: the operand, and the output at each place of it."""

    matrix: Matrix
    user: fx.Node
    value: fx.Node
    channels: Tensor


class _RefusedError(Exception):
    """The reason why a contraction has no logits."""


def find_logits(program: Program, flow: Flow) -> Iterator[tuple[Contraction, Logits | str]]:
    """Yield the contractions of two activations that carry channels, each with its logits, or why another basis would change them."""
    found = [reading for m in matrices(program, flow).values() for reading in _readings(flow, m)]
    by_use = {(reading.user, reading.value): reading for reading in found}
    for contraction in flow.contractions:
        if len([value for value in contraction.operands if value in flow.varies]) != 2:
            continue
        try:
            yield contraction, _logits(flow, contraction, by_use)
        except _RefusedError as refused:
            yield contraction, str(refused)


def _logits(flow: Flow, contraction: Contraction, by_use: dict[Any, _Reading]) -> Logits:
    used = list(operands(contraction.node))
    for value in contraction.operands:
        if (contraction.node, value) not in by_use or used.count(value) > 1:
            raise _RefusedError(_obstacle(value))
    pair = [by_use[contraction.node, value] for value in contraction.operands]
    query, key = (_side(flow, reading, contraction.dim) for reading in pair)
    _check_apart(query, key)
    for side, reading in zip((query, key), pair, strict=True):
        _check_alone(side, [other for other in by_use.values() if other is not reading])
    return Logits(contraction.node, query, key, _groups(flow, query, key))


def _readings(flow: Flow, matrix: Matrix) -> Iterator[_Reading]:
    """Yield the readers of a matrix's outputs, with numbers of outputs moved as the graph moves the values."""
    shape = [hint(size) for size in matrix.node.meta["val"].shape]
    place = len(shape) - matrix.outputs
    numbers = torch.arange(shape[place]).reshape(-1, *[1] * (matrix.outputs - 1)).expand(shape)
    waiting: list[tuple[fx.Node, Any]] = [(matrix.node, numbers)]
    while waiting:
        value, channels = waiting.pop()
        for user in (user for user in value.users if not traits_of(user.target).shape_only):
            moved = _moved(flow, user, value, channels)
            if moved is not None:
                waiting.append((user, moved))
            elif isinstance(channels, Tensor):
                yield _Reading(matrix, user, value, channels)


def _moved(flow: Flow, user: fx.Node, value: fx.Node, channels: Any) -> Any:
    """Return the outputs at each place of a reader's result; None where it does more than move, copy or scale them."""
    if user.op != "call_function":
        return None
    if user.target is operator.getitem:
        return channels[user.args[1]]
    if passes_value(user) or _scales(flow, user, value):
        return channels
    others = [node for node in user.all_input_nodes if node is not value]
    known = all(isinstance(node.meta["val"], (int, torch.SymInt)) for node in others)
    if traits_of(user.target).moves not in _MOVES or not known:
        return None
    args, kwargs = fx.node.map_arg(
        (user.args, user.kwargs), lambda node: channels if node is value else hint(node.meta["val"])
    )
    return user.target(*args, **kwargs)  # type: ignore[operator]


def _scales(flow: Flow, user: fx.Node, value: fx.Node) -> bool:
    """Return whether a node multiplies a value, or divides it, by one number that no input has a part in."""
    bound = {name: argument.value for name, argument in bind(user).items()}
    own = [name for name in traits_of(user.target).multiplies.split() if bound[name] is value]
    others = [other for name, other in bound.items() if name not in own]
    return len(own) == 1 and all(other is None or _is_number(flow, other) for other in others)


def _is_number(flow: Flow, value: Any) -> bool:
    if isinstance(value, fx.Node):
        found = value.meta["val"]
        return value not in flow.varies and (not isinstance(found, Tensor) or found.numel() == 1)
    return isinstance(value, (int, float))


def _obstacle(value: fx.Node) -> str:
    """Return what an operand is made by, once movements, copies and dropouts are left out."""
    node = value
    while node.target is operator.getitem or passes_value(node) or traits_of(node.target).moves in _MOVES:
        node = node.all_input_nodes[0]
    return f"{node.name} = {node.target} is no matrix of its own that {value.name} moves, copies or scales [{source_line(node)}]"


def _side(flow: Flow, reading: _Reading, dim: Dim) -> Side:
    wanted = list(leaves(dim))
    places = [i for i, d in enumerate(flow.dims[reading.value]) if list(leaves(d)) == wanted]
    if len(places) != 1:
        raise _RefusedError(f"{reading.value.name} has the contracted dim {len(places)} times")
    moved = reading.channels.movedim(places[0], -1)
    heads = tuple(i for i in range(moved.dim() - 1) if bool((moved != moved.narrow(i, 0, 1)).any()))
    for i in reversed([i for i in range(moved.dim() - 1) if i not in heads]):
        moved = moved.select(i, 0)
    return Side(reading.matrix, reading.value, places[0], heads, moved.reshape(-1, moved.shape[-1]))


def _check_apart(query: Side, key: Side) -> None:
    """Refuse channels that belong to two heads in part, or to queries and keys."""
    heads = [side.channels.unique(dim=0).flatten() for side in (query, key)]
    sets = [torch.cat(heads)] if query.matrix is key.matrix else heads
    if any(len(each.unique()) < len(each) for each in sets):
        raise _RefusedError(f"an output of {query.matrix.node.name} is compared in two ways")


def _check_alone(side: Side, others: list[_Reading]) -> None:
    for other in others:
        if other.matrix is side.matrix and bool(torch.isin(side.channels, other.channels).any()):
            raise _RefusedError(
                f"{other.user.name} = {other.user.target} reads {side.value.name}'s channels as well [{source_line(other.user)}]"
            )


def _groups(flow: Flow, query: Side, key: Side) -> tuple[tuple[list[int], list[int]], ...]:
    rows = [
        [(name, *row) for row in side.channels.tolist()] for name, side in (("query", query), ("key", key))
    ]
    graph = nx.Graph()
    for (i, one), (j, other) in itertools.product(
        enumerate(_units(flow, query)), enumerate(_units(flow, key))
    ):
        if all(one[leaf] == other[leaf] for leaf in one.keys() & other.keys()):
            graph.add_edge(rows[0][i], rows[1][j])
    queries, keys = (
        [[i for i, row in enumerate(side) if row in each] for each in nx.connected_components(graph)]
        for side in rows
    )
    return tuple(zip(queries, keys, strict=True))


def _units(flow: Flow, side: Side) -> list[dict[Dim, int]]:
    """Return, for each head of a side, the unit of each atom of its dims."""
    dims = [dim for i, dim in enumerate(flow.dims[side.value]) if i != side.place]
    along = []
    for place in side.heads:
        found = {leaf: coordinates(dims[place], leaf).tolist() for leaf in dict.fromkeys(leaves(dims[place]))}
        along.append([{leaf: units[i] for leaf, units in found.items()} for i in range(dims[place].size)])
    return [
        {leaf: unit for part in parts for leaf, unit in part.items()} for parts in itertools.product(*along)
    ]
