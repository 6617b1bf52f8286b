"""Segments: stretches of a graph that run one after another over all batches, so that few weights and values are needed at a time.

A graph is cut where the fewest bytes cross, as between layers: what crosses is kept for each batch, in memory up to a limit, then in
scratch files. Any place can be cut; a graph that overwrites values or draws random ones is one segment.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, fx

from fxprune.calibration.processes import agreed
from fxprune.ir import Program, shape_of
from fxprune.ir.random_values import may_draw
from fxprune.rules import is_written
from fxprune.storage import is_mapped, to_disk

SEGMENT_BYTES = 3 << 26
"""Bytes of the weights of a segment, at most, where a program lies on disk: a layer of 2,048 wide has about as many in float32."""

KEPT_BYTES = 1 << 28
"""Bytes of the values between segments that are kept in memory."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Operators of a stretch of a graph, in order.

    `reads` are the inputs and earlier values that they or later ones read, `leaves` the values up to its end that later ones read.
    """

    nodes: tuple[fx.Node, ...]
    reads: tuple[fx.Node, ...]
    leaves: tuple[fx.Node, ...]

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the operators, and of the tensors that they read."""
        return frozenset(each.name for node in self.nodes for each in (node, *_weights(node)))

    @cached_property
    def parameters(self) -> frozenset[str]:
        """Names of the parameters and buffers that they read."""
        return frozenset(str(weight.target) for node in self.nodes for weight in _weights(node))


def segment_bytes(program: Program) -> int:
    """Return the bytes of weights that a segment of a program may have: of a program in memory, 0, which stands for all."""
    return int(agreed(SEGMENT_BYTES if program.is_mapped() else 0))


def segments_of(program: Program, limit: int) -> list[Segment]:
    """Cut a graph into segments whose weights take at most `limit` bytes each, as far as single operators allow; 0: one segment."""
    nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    whole = limit <= 0 or any(map(may_draw, nodes)) or any(map(is_written, program.graph.nodes))
    cuts = [] if whole else _cuts(program, nodes, limit)
    return [_segment(program, nodes, *span) for span in pairwise([0, *cuts, len(nodes)])]


def _cuts(program: Program, nodes: Sequence[fx.Node], limit: int) -> list[int]:
    """Return the places before which the graph is cut: each is the last of those that the fewest bytes cross.

    The weights before it, since the last cut, take half of the limit at least, as far as the graph can be cut there.
    """
    crossing = _crossing_bytes(nodes)
    weights = program.tensors()
    found, start, place = list[int](), 0, 0
    read, before = set[str](), [0]  # weights since the last cut, and their bytes before each place since
    while place < len(nodes):
        new = {str(each.target) for each in _weights(nodes[place])} - read
        size = sum(weights[name].nbytes for name in new if name in weights)
        if before[-1] + size > limit and place > start:
            candidates = [i for i in range(place, start, -1) if 2 * before[i - start] >= before[-1]]
            start = min(candidates, key=crossing.__getitem__)
            found.append(start)
            place, read, before = start, set(), [0]
            continue
        read, place = read | new, place + 1
        before.append(before[-1] + size)
    return [each for each in found if math.isfinite(crossing[each])]


def _crossing_bytes(nodes: Sequence[fx.Node]) -> list[float]:
    """Return the bytes of values that are computed before each place and read from there on; infinite where some are lists of tensors."""
    place = {node: i for i, node in enumerate(nodes)}
    changes = [0] * (len(nodes) + 1)
    lists = [0] * (len(nodes) + 1)
    for node in nodes:
        last = max((place.get(user, len(nodes) - 1) for user in node.users), default=place[node])
        counted = lists if isinstance(node.meta.get("val"), (list, tuple)) else changes
        size = 1 if counted is lists else value_bytes(node)
        counted[place[node] + 1] += size
        counted[last + 1] -= size
    pairs = zip(accumulate(changes), accumulate(lists), strict=True)
    return [math.inf if several else float(total) for total, several in pairs][:-1]


def value_bytes(node: fx.Node) -> int:
    """Return the bytes of a node's value at the example's sizes; 0 where it is no tensor."""
    value = node.meta.get("val")
    return math.prod(shape_of(value) or ()) * value.element_size() if isinstance(value, Tensor) else 0


def _segment(program: Program, nodes: Sequence[fx.Node], start: int, end: int) -> Segment:
    own = nodes[start:end]
    inside, before = set(own), set(nodes[:start])
    after = {*nodes[end:], program.graph.output_node()}
    read = dict.fromkeys(each for node in own for each in node.all_input_nodes if each not in inside)
    passed = [node for node in nodes[:end] if not after.isdisjoint(node.users)]
    reads = [node for node in read if node.op == "placeholder" or node in before]
    reads += [node for node in passed if node in before and node not in read]
    return Segment(tuple(own), tuple(reads), tuple(passed))


def _weights(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if source.op == "get_attr"]


class CrossingValues:
    """Values that cross from one segment to later ones, for each batch: `limit` bytes in memory, further tensors in scratch files."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._room = limit
        self._values: dict[
            tuple[Hashable, fx.Node], tuple[Any, int]
        ] = {}  # with the bytes of memory that it takes

    def keep(self, batch: Hashable, values: Mapping[fx.Node, Any]) -> None:
        """Keep the values of a batch."""
        for node, value in values.items():
            kept = self._placed(value)
            self._values[batch, node] = kept
            self._room -= kept[1]

    def of(self, batch: Hashable, nodes: Sequence[fx.Node]) -> dict[fx.Node, Any]:
        """Return the values of a batch at those of these nodes that have one."""
        return {node: self._values[batch, node][0] for node in nodes if (batch, node) in self._values}

    def all(self) -> Iterator[tuple[tuple[Any, fx.Node], Any]]:
        """Yield all values by (batch, node)."""
        for key, (value, _) in self._values.items():
            yield key, value

    def drop(self, batch: Hashable, nodes: Sequence[fx.Node]) -> None:
        """Let go of the values of a batch at these nodes."""
        for node in nodes:
            _, size = self._values.pop((batch, node), (None, 0))
            self._room += size

    def _placed(self, value: Any) -> tuple[Any, int]:
        """Return a value where it is kept, and the bytes of memory that it takes there."""
        if not isinstance(value, Tensor):
            return value, 0
        here = value.detach().to("cpu")
        found = to_disk(here) if value.nbytes > self._room else here
        return found, 0 if is_mapped(found) else found.nbytes
