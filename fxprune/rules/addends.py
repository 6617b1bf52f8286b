"""Addends: values that leave a sum with a position of a dim, such as experts that are modules, each weighed by its own share of a router.

    shares [t, e] ── slice k ── view, mul(expert k(x)) ── add, add …        position k gone: its addend leaves, the slices are renumbered
    stack([expert 0(x), …]) ── mul(shares) ── sum                           position k gone: the stack has one operand less

A share of zero makes its addend zero, whatever else is multiplied into it. A dim may lose positions where each value that is taken from it
holds one position and goes, through movements and products, into additions (or into a stack in its order) and nowhere else. The analysis
uses the graph alone, before any dim is known.
"""

from __future__ import annotations

import heapq
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx

from fxprune.ir import bind
from fxprune.rules.aliasing import is_written
from fxprune.rules.routing import Candidates
from fxprune.rules.traits import packet_of, passes_value, traits_of

aten = torch.ops.aten

Positions = frozenset[int]

_JOINS = (aten.stack, aten.cat)
_MOVES = ("view", "flatten", "expand", "transpose")


class OnePosition(NamedTuple):
    """One position along a dimension of a value, which a node takes from it."""

    of: Candidates
    position: int


@dataclass
class Addends:
    """Values that can leave sums: `slots` by the nodes that hold one, and the values that are zero with them (`silent`).

    `sums`: the additions that those leave. `stacks`: the joins that lose an operand with a position, and the dimension whose positions the
    operands are in order (None: of no other). `takers`: by dimension, the nodes that hold a position. `why`: the dimensions that are taken
    apart otherwise, with what reads a position, and the node.
    """

    slots: dict[fx.Node, OnePosition] = field(default_factory=dict)
    silent: set[fx.Node] = field(default_factory=set)
    sums: set[fx.Node] = field(default_factory=set)
    stacks: dict[fx.Node, Candidates | None] = field(default_factory=dict)
    takers: dict[Candidates, list[fx.Node]] = field(default_factory=dict)
    why: dict[Candidates, tuple[str, fx.Node]] = field(default_factory=dict)

    def taken(self, node: fx.Node) -> Candidates | None:
        """The dimension that a node (of one result or several) takes single positions from, where they can leave; else None."""
        found = self.slots.get(node) or next((self.slots[u] for u in node.users if u in self.slots), None)
        return found.of if found is not None and found.of.value in node.all_input_nodes else None

    def leaving(self, taken: Iterable[Candidates], joins: Sequence[fx.Node]) -> list[str]:
        """The tensors that leave with some position of the dimensions that are taken apart, or with an operand of the joins."""
        units: dict[int, set[fx.Node]] = {}
        for of in taken:
            for node in self.takers[of]:
                units.setdefault(self.slots[node].position, set()).update(self._silenced(node))
        for join in joins:
            for position, item in enumerate(join.args[0]):  # type: ignore[arg-type]
                if all(user in joins for user in item.users):
                    units.setdefault(position, set()).add(item)
        gone = [node for unit in units.values() for node in _needed_by(unit)]
        return list(dict.fromkeys(str(node.target) for node in gone if node.op == "get_attr"))

    def _silenced(self, node: fx.Node) -> set[fx.Node]:
        """The values that are zero with one position, sums of several addends aside."""
        found, waiting = {node}, [node]
        while waiting:
            users = [user for user in waiting.pop().users if user in self.silent and user not in self.sums]
            waiting += [user for user in users if user not in found]
            found.update(users)
        return found


def _needed_by(values: set[fx.Node]) -> list[fx.Node]:
    """The values, and what only they need."""
    found, waiting = set(values), list(values)
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found and all(user in found for user in source.users):
                found.add(source)
                waiting.append(source)
    return sorted(found)


class _RefusedError(Exception):
    """A way in which a position is read that its removal would not survive, and the node."""


def addends(nodes: list[fx.Node], varies: set[fx.Node]) -> Addends:
    """The addends of a graph; `varies` are the values that depend on an input."""
    order = {node: i for i, node in enumerate(nodes)}
    found = Addends()
    groups = {of: each for of, each in _taken_apart(nodes).items() if of.value in varies}
    walks: dict[Candidates, _Walk] = {}
    for of, takers in groups.items():
        try:
            walks[of] = _Walk(of, takers, order)
        except _RefusedError as error:
            found.why[of] = error.args
    for of in _without_meetings(walks, found):
        walk = walks[of]
        found.slots |= {node: OnePosition(of, next(iter(walk.zero[node]))) for node in walk.takers}
        found.silent |= walk.zero.keys()
        found.sums |= walk.sums
        found.stacks |= dict.fromkeys(walk.stacks, of)
        found.takers[of] = walk.takers
    joins = (node for node in nodes if packet_of(node.target) in _JOINS)
    for node in (each for each in joins if each not in found.stacks and _adds_a_dim(each)):
        if _is_weighed(node, varies):
            found.stacks[node] = None
    return found


def _without_meetings(walks: Mapping[Candidates, _Walk], found: Addends) -> Iterator[Candidates]:
    """Yield the dimensions none of whose addends is added to one of another dimension: both could leave, and nothing would be left."""
    many = Counter(node for walk in walks.values() for node in walk.sums)
    for of, walk in walks.items():
        met = next((node for node in walk.sums if many[node] > 1), None)
        if met is None:
            yield of
        else:
            found.why[of] = "adds it to an addend of another choice", met


class _Taken(NamedTuple):
    """A node whose value holds some positions of another's dimension, and the node that takes them (of a split: the split)."""

    node: fx.Node
    taker: fx.Node
    start: int
    length: int


def _taken_apart(nodes: list[fx.Node]) -> dict[Candidates, list[_Taken]]:
    """The values that hold a part of a dimension of fixed size, by dimension, where at least two positions are taken singly."""
    found: dict[Candidates, list[_Taken]] = {}
    for node in nodes:
        row = traits_of(node.target)
        if node.op == "call_function" and row.moves == "part" and isinstance(node.args[0], fx.Node):
            shape, place = node.args[0].meta["val"].shape, bind(node)["dim"].value
            if isinstance(place, int) and len(shape) and isinstance(shape[place], int):
                of = Candidates(node.args[0], place % len(shape))
                found.setdefault(of, []).extend(_parts(node, shape[place]))
    single = {of: {each.start for each in parts if each.length == 1} for of, parts in found.items()}
    return {of: parts for of, parts in found.items() if len(single[of]) > 1}


def _parts(node: fx.Node, size: int) -> Iterator[_Taken]:
    """Yield what a node takes along a dimension of this size; of a length of 0 where that is not known."""
    packet, bound = packet_of(node.target), bind(node)
    if packet is aten.select and isinstance(bound["index"].value, int):
        yield _Taken(node, node, bound["index"].value % size, 1)
    elif packet is aten.slice and node.meta["val"].shape != node.args[0].meta["val"].shape:  # type: ignore[union-attr]
        start, end = (bound[name].value for name in ("start", "end"))
        start, fits = start or 0, all(isinstance(number, int) for number in (start or 0, end))
        start = max(0, start + size) if fits and start < 0 else start
        length = node.meta["val"].shape[bound["dim"].value]
        yield _Taken(node, node, start if fits else 0, length if fits else 0)
    elif packet in (aten.unbind, aten.split_with_sizes):
        sizes = bound["split_sizes"].value if packet is aten.split_with_sizes else [1] * size
        for user in node.users:
            place = int(user.args[1]) % len(sizes) if user.target is operator.getitem else 0  # type: ignore[arg-type]
            yield _Taken(
                user, node, sum(sizes[:place]), sizes[place] if user.target is operator.getitem else 0
            )


class _Walk:
    """Walk from the positions of one dimension to the sums that their addends are in; _RefusedError where one is read otherwise.

    `zero` has, for each value that may become zero, the positions that all must be gone for that.
    """

    def __init__(self, of: Candidates, parts: list[_Taken], order: Mapping[fx.Node, int]) -> None:
        self.size, self.order = int(of.value.meta["val"].shape[of.place]), order
        wide = next((part.taker for part in parts if part.length != 1), None)
        if wide is not None:
            raise _RefusedError("takes several positions at once, or such as data decide", wide)
        self.takers = [part.node for part in parts]
        self.zero: dict[fx.Node, Positions] = {part.node: frozenset([part.start]) for part in parts}
        self.sums: set[fx.Node] = set()
        self.stacks: set[fx.Node] = set()
        heap = [(order[user], user) for node in self.takers for user in node.users]
        heapq.heapify(heap)
        while heap:
            _, node = heapq.heappop(heap)
            if node not in self.zero and self._goes_on(node):
                for user in node.users:
                    heapq.heappush(heap, (order[user], user))
        written = next((node for node in (of.value, *self.zero) if is_written(node)), None)
        if written is not None:
            raise _RefusedError("is written into", written)

    def _goes_on(self, node: fx.Node) -> bool:
        """Whether a value becomes zero with positions, so that its readers count, too."""
        if packet_of(node.target) is aten.stack:
            self._stacked(node)
            return False
        silent = self._added(node) if packet_of(node.target) is aten.add else self._passed(node)
        if len(silent) in (0, self.size):
            return False
        self.zero[node] = silent
        return True

    def _stacked(self, node: fx.Node) -> None:
        items: Any = node.args[0]
        if [self.zero.get(item) for item in items] != [frozenset([i]) for i in range(self.size)]:
            raise _RefusedError("joins positions with other values, or in another order", node)
        self.stacks.add(node)

    def _added(self, node: fx.Node) -> Positions:
        """The positions with which all addends are gone; none where one stays."""
        bound = bind(node)
        sides = [bound[name].value for name in ("self", "other")]
        values = [side for side in sides if isinstance(side, fx.Node)]
        if bound["alpha"].value != 1 if "alpha" in bound else False:
            raise _RefusedError("scales an addend", node)
        if any(not isinstance(side, fx.Node) and side != 0 for side in sides):
            raise _RefusedError("adds a number", node)
        if not all(_is_like(side, node) for side in values):
            raise _RefusedError("broadcasts an addend or changes its dtype", node)
        self.sums.add(node)
        inside = all(side in self.zero for side in values)
        return frozenset().union(*(self.zero[side] for side in values)) if inside else frozenset()

    def _passed(self, node: fx.Node) -> Positions:
        """The positions of the one operand that makes the result zero."""
        row, bound = traits_of(node.target), bind(node) if node.op == "call_function" else {}
        carriers = [source for source in node.all_input_nodes if source in self.zero]
        moved = (row.moves in _MOVES or passes_value(node)) and node.args[0] is carriers[0]
        factors = [bound[name].value for name in row.multiplies.split() if name in bound]
        if len(carriers) > 1 or not (moved or factors.count(carriers[0]) == 1):
            raise _RefusedError("reads a position on its own", node)
        return self.zero[carriers[0]]


def _is_like(one: fx.Node, other: fx.Node) -> bool:
    """Whether two values have the same sizes and dtype."""
    first, second = one.meta["val"], other.meta["val"]
    return str(first.shape) == str(second.shape) and first.dtype == second.dtype


def _adds_a_dim(node: fx.Node) -> bool:
    """Whether a join puts values side by side, each at one position of a dim that the graph makes for it.

    A dim of size 1 that comes from weights doesn't count: cut to one channel, two branches would become a choice of two.
    """
    if packet_of(node.target) is aten.stack:
        return True
    rank, place = node.meta["val"].dim(), bind(node)["dim"].value
    return all(_is_made(item, rank, place % rank) for item in node.args[0])  # type: ignore[union-attr]


def _is_made(value: Any, rank: int, place: int) -> bool:
    """Whether a dimension of size 1 is new in a movement, values passed on aside."""
    while value.op == "call_function" and passes_value(value) and len(value.all_input_nodes) == 1:
        value = value.all_input_nodes[0]
    if traits_of(value.target).moves not in _MOVES:
        return False
    shape, before = (node.meta["val"].shape for node in (value, value.all_input_nodes[0]))
    more = sum(map(_is_one, shape)) > sum(map(_is_one, before))
    return more and len(before) < len(shape) == rank and _is_one(shape[place])


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _is_weighed(join: fx.Node, varies: set[fx.Node]) -> bool:
    """Whether a join of values that inputs decide is multiplied by another such value, movements aside."""
    if not all(item in varies for item in join.args[0]) or is_written(join):  # type: ignore[union-attr]
        return False
    seen, waiting = {join}, [join]
    while waiting:
        for user in waiting.pop().users:
            row = traits_of(user.target)
            if (row.multiplies or row.is_product) and _has_other_factor(user, seen, varies):
                return True
            if user not in seen and (
                row.moves in _MOVES or (user.op == "call_function" and passes_value(user))
            ):
                seen.add(user)
                waiting.append(user)
    return False


def _has_other_factor(node: fx.Node, seen: set[fx.Node], varies: set[fx.Node]) -> bool:
    if packet_of(node.target) is aten.scaled_dot_product_attention:
        return False
    return any(source in varies and source not in seen for source in node.all_input_nodes)
