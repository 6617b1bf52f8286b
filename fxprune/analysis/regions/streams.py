"""Streams: how values run through a graph, and what nothing needs any more where readers of one value read another."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from functools import cached_property, reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.dims import Dim, find
from fxprune.ir import Program, attribute, bind, operands
from fxprune.ir.arguments import with_sources
from fxprune.rules import Flow, traits_of

aten = torch.ops.aten

#: operators that leave each element as it is
_MOVES = ("view", "flatten", "transpose")


class Streams:
    """Values of a program that depend on its inputs: who reads them, which have the same dims, and where they are passed on.

    A value is passed on where an operator takes it element by element (a sum, a factor, a norm, an activation), not by a product with
    weights or a statistic of it.
    """

    def __init__(self, program: Program, flow: Flow) -> None:
        self.program, self.flow = program, flow
        self.order = {node: i for i, node in enumerate(program.graph.nodes)}
        self.spare = program.spare_outputs()
        self.sums = {fact.node for fact in flow.contractions}
        self._keys: dict[fx.Node, Hashable] = {}
        self._weights: dict[fx.Node, tuple[str, ...]] = {}
        self._counts: dict[fx.Node, int] = {}

    @cached_property
    def calls(self) -> list[fx.Node]:
        """The operators whose results depend on inputs, in graph order."""
        return [n for n in self.order if n.op == "call_function" and n in self.flow.varies]

    def key(self, node: fx.Node) -> Hashable:
        """Return a key that is equal for values of the same dims and dtype; None where a value has no dims."""
        if node not in self._keys:
            shape, value = self.flow.dims.get(node) or (), node.meta.get("val")
            known = isinstance(value, Tensor) and shape and all(isinstance(dim, Dim) for dim in shape)
            self._keys[node] = (tuple(map(_key, shape)), value.dtype) if known and value is not None else None
        return self._keys[node]

    def is_arranged(self, node: fx.Node, key: Hashable) -> bool:
        """Return whether a value has the elements of one with this key, in another shape or order."""
        mine = self.key(node)
        return mine is not None and (_is_move(node) or _flat(mine) == _flat(key))

    def arranged(self, node: fx.Node) -> fx.Node:
        """Return the value that a node arranges anew, the node itself where it does something else."""
        while _is_move(node):
            node = node.all_input_nodes[0]
        return node

    def read(self, node: fx.Node) -> list[fx.Node]:
        """Return the values that a node reads and that depend on inputs, each once; none for one that reads shapes alone."""
        if traits_of(node.target).shape_only:
            return []
        return [source for source in dict.fromkeys(operands(node)) if source in self.flow.varies]

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes that need a value: its readers but checks, the output node where the value is a needed output."""
        spare = node in self.spare
        return [u for u in node.users if not (spare and u.op == "output") and not traits_of(u.target).asserts]

    def _needs(self, node: fx.Node) -> int:
        """Return how many nodes need a value; counted once, for all layers may read the same mask, table or size."""
        if node not in self._counts:
            self._counts[node] = len(self.users(node))
        return self._counts[node]

    def passed(self, node: fx.Node) -> list[fx.Node]:
        """Return the operands that a node passes on."""
        row = traits_of(node.target)
        if node.op != "call_function" or node in self.flow.unknown:
            return []
        if row.adds and (row.is_product or node in self.sums):
            bound = bind(node)
            return [bound[name].value for name in row.adds.split() if bound[name].value in self.flow.varies]
        return [] if row.is_product or node in self.sums else self.read(node)

    def is_sum(self, node: fx.Node) -> bool:
        """Return whether a node adds another value of its size to one that it passes on."""
        row = traits_of(node.target)
        alike = sum(self.is_as_large(source, node) for source in self.read(node))
        return bool(row.adds) and (node in self.sums or alike > 1)

    def is_as_large(self, node: fx.Node, other: fx.Node) -> bool:
        """Return whether a value has as many elements as one that is computed from it element by element."""
        mine, theirs = (getattr(one.meta.get("val"), "shape", ()) for one in (node, other))
        sizes = zip(map(str, mine), map(str, theirs), strict=False)
        return len(mine) == len(theirs) > 0 and not any(one == "1" != size for one, size in sizes)

    def dead(self, exits: Iterable[fx.Node], kept: Collection[fx.Node]) -> dict[fx.Node, None]:
        """Return the nodes that nothing needs where readers of the exits read something else; `kept` is needed in any case."""
        found = dict.fromkeys(exits)
        waiting, left = list(found), dict[fx.Node, int]()
        while waiting:
            for source in dict.fromkeys(operands(waiting.pop())):
                left[source] = left.get(source, self._needs(source)) - 1
                is_call = source.op == "call_function" and source in self.flow.varies
                if is_call and not left[source] and source not in found and source not in kept:
                    found[source] = None
                    waiting.append(source)
        return dict.fromkeys(sorted(found, key=self.order.__getitem__))

    def behind(self, entries: Iterable[fx.Node], nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Return those of the nodes, given in graph order, that are computed from the entries."""
        found = dict.fromkeys(entries)
        own: list[fx.Node] = []
        for node in nodes:
            if any(source in found for source in self.read(node)):
                found[node] = None
                own.append(node)
        return own

    def descends(self, node: fx.Node, entry: fx.Node) -> bool:
        """Return whether a value is computed from another, which is earlier in the graph."""
        seen, waiting, first = {node}, [node], self.order[entry]
        while waiting:
            found = waiting.pop()
            if found is entry:
                return True
            fresh = [one for one in self.read(found) if one not in seen and self.order[one] >= first]
            seen.update(fresh)
            waiting += fresh
        return False

    def frontier(self, nodes: Collection[fx.Node]) -> dict[fx.Node, None]:
        """Return the values that nodes read and that are none of them."""
        return {source: None for node in nodes for source in self.read(node) if source not in nodes}

    @cached_property
    def origins(self) -> dict[fx.Node, int]:
        """For each value the streams that it is computed from, as bits: floating inputs, and first operators with weights behind inputs."""
        found: dict[fx.Node, int] = {}
        begun, count = set[fx.Node](), 0
        for node in (node for node in self.order if node in self.flow.varies):
            read = self.read(node)
            first = begun.isdisjoint(read) and self.reads_weights(node)
            count += first or _is_floating_input(node)
            own = 1 << count if first or _is_floating_input(node) else 0
            found[node] = reduce(or_, (found[source] for source in read), own)
            begun |= {node} if first or not begun.isdisjoint(read) else set()
        return found

    def constants(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """Return the values that nodes read, directly or behind other such values, and that depend on no input."""
        read = (source for node in nodes for source in operands(node))
        return with_sources(source for source in read if source not in self.flow.varies)

    def reads_weights(self, node: fx.Node) -> bool:
        return node.op == "call_function" and bool(self.weights([node]))

    def reads_weights_within(self, entries: Sequence[fx.Node], nodes: Iterable[fx.Node]) -> bool:
        """Return whether weights make something of the entries that is then added to a value."""
        own = self.behind(entries, nodes)
        return any(self.reads_weights(node) and not traits_of(node.target).adds for node in own)

    def weights(self, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
        """Return the parameters that nodes read, directly or behind operators on constants, each once."""
        constants = (source for node in nodes for source in operands(node) if source not in self.flow.varies)
        return tuple(dict.fromkeys(name for node in constants for name in self._held(node)))

    def _held(self, node: fx.Node) -> tuple[str, ...]:
        """Return the parameters that a constant is computed from."""
        waiting = [node]
        while waiting:
            open_ = [source for source in waiting[-1].all_input_nodes if source not in self._weights]
            if open_:
                waiting += open_
                continue
            made = waiting.pop()
            behind = (name for source in made.all_input_nodes for name in self._weights[source])
            self._weights[made] = (*_own(self.program, made), *dict.fromkeys(behind))
        return self._weights[node]

    def signature(self, nodes: Sequence[fx.Node], entries: Sequence[fx.Node]) -> str:
        """Return a hash that is equal for parts of the same structure: operators, how they are joined, and the shapes of parameters."""
        place = {node: i for i, node in enumerate(nodes)}
        place |= {node: -1 - i for i, node in enumerate(entries)}
        lines = [f"{node.target} {[self._operand(one, place) for one in operands(node)]}" for node in nodes]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def _operand(self, node: fx.Node, place: dict[fx.Node, int]) -> str:
        if node in place:
            return str(place[node])
        if node.op == "get_attr":
            value = attribute(self.program.graph_module, str(node.target))
            return str(tuple(value.shape)) if isinstance(value, nn.Parameter) else "constant"
        return "side"


def _is_move(node: fx.Node) -> bool:
    return traits_of(node.target).moves in _MOVES


def _own(program: Program, node: fx.Node) -> Iterator[str]:
    value = attribute(program.graph_module, str(node.target)) if node.op == "get_attr" else None
    if isinstance(value, nn.Parameter):
        yield str(node.target)


def _is_floating_input(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return node.op == "placeholder" and isinstance(value, Tensor) and value.is_floating_point()


def _key(dim: Dim) -> Hashable:
    """Return a key that is equal for dims that are the same, whichever objects represent them."""
    dim = find(dim)
    if dim.kind == "atom":
        return dim.serial if dim.size > 1 else 1
    return (dim.kind, dim.order, *(_key(part) for part in dim.parts))


def _flat(key: Any) -> tuple[Hashable, ...]:
    """Return the sizes of a key in row-major order, those that are merged apart, and its dtype."""
    shape, dtype = key
    return (*(part for dim in shape for part in _factors(dim) if part != 1), dtype)


def _factors(dim: Any) -> Iterator[Hashable]:
    if isinstance(dim, tuple) and dim[0] == "product":
        for part in dim[2:]:
            yield from _factors(part)
    else:
        yield dim
