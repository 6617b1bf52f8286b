"""Single-entry single-exit segments: parts of a graph whose output has the dims of its input, so that they can be bypassed.

    x ─┬─ norm ─ attention ─ add ─┬─ norm ─ ffn ─ add ── …       cut points x, add, add: two residual branches, one layer
       └──────────────────────────┘

Cut points are found with dominators on what a stream's source reaches, so that masks and positions, which come from elsewhere, hide
nothing. They are chained wherever one dominates the next and the next post-dominates the one: at the top level, and inside branches (the
middle of a U-Net). Segments that repeat by structure are layers (see `fxprune.analysis.regions`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn

from fxprune.dims import Dim, find
from fxprune.ir import Program, attribute, operands
from fxprune.rules import Flow, is_written, passes_value, traits_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Segment:
    """Segment between two neighbouring cut points of equal dims, (entry, exit], in graph order.

    `tail` are the atoms without parameters that follow it (an activation, a dropout).
    """

    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    parameters: tuple[str, ...]
    signature: str
    tail: tuple[Segment, ...] = ()

    @property
    def end(self) -> fx.Node:
        """The last cut point, the tail included."""
        return self.tail[-1].exit if self.tail else self.exit

    @property
    def residual(self) -> bool:
        """Whether the exit adds the entry's value to a value computed from it."""
        if self.exit.target not in (aten.add.Tensor, aten.add_.Tensor):
            return False
        inputs = self.exit.all_input_nodes
        adds_entry = any(_source(arg) is _source(self.entry) for arg in inputs)
        return adds_entry and any(arg in self.nodes for arg in inputs)


def _source(node: fx.Node) -> fx.Node:
    """Return the node behind those that pass a value on."""
    while passes_value(node):
        node = node.all_input_nodes[0]
    return node


@dataclass(frozen=True)
class Row:
    """Atoms of one stream in graph order, all of the same dims; `reached` are the nodes between the stream's source and the outputs."""

    atoms: tuple[Segment, ...]
    reached: frozenset[fx.Node]


def find_rows(program: Program, flow: Flow) -> list[Row]:
    """Return rows of atoms between neighbouring cut points, by stream and by dims, the longest first.

    Where streams join (an encoder's output in a decoder), an atom belongs to the longest row that has it.
    """
    graph = _graph(program, flow)
    streams = [_Stream(program, flow, graph, source) for source in _sources(program, flow)]
    rows = [Row(tuple(run), frozenset(stream.graph)) for stream in streams for run in stream.runs()]
    known: set[tuple[fx.Node, fx.Node]] = set()
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: -len(row.atoms)):
        fresh = [atom for atom in row.atoms if (atom.entry, atom.exit) not in known]
        known.update((atom.entry, atom.exit) for atom in fresh)
        found += [replace(row, atoms=tuple(fresh))] if fresh else []
    return found


def _graph(program: Program, flow: Flow) -> nx.DiGraph:
    """Return the graph of all that depends on an input, from operand to user; the output node is the sink of outputs that are not spare.

    What depends on the shapes of its operands alone carries none of their values on.
    """
    graph, spare = nx.DiGraph(), program.spare_outputs()
    for node in program.graph.nodes:
        if (node in flow.varies and not traits_of(node.target).shape_only) or node.op == "output":
            read = [source for source in operands(node) if source in flow.varies]
            needed = [source for source in read if source not in spare] if node.op == "output" else read
            graph.add_edges_from((source, node) for source in needed)
    return graph


def _sources(program: Program, flow: Flow) -> list[fx.Node]:
    """Return where streams begin: inputs of floating type, and the first operators with a parameter behind any input."""
    begun: set[fx.Node] = set()
    sources: list[fx.Node] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and _is_floating(node):
            sources.append(node)
        if node not in flow.varies or node.op != "call_function":
            continue
        if any(one in begun for one in node.all_input_nodes):
            begun.add(node)
        elif weights(program, [node], flow):
            begun.add(node)
            sources.append(node)
    return sources


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def weights(program: Program, nodes: Sequence[fx.Node], flow: Flow) -> tuple[str, ...]:
    """Return the parameters that nodes read, directly or behind operators on constants, each once."""
    found: dict[str, None] = {}
    seen: set[fx.Node] = set()
    waiting = [source for node in nodes for source in operands(node) if source not in flow.varies]
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        value = attribute(program.graph_module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(value, nn.Parameter):
            found[str(node.target)] = None
        waiting += node.all_input_nodes
    return tuple(found)


class _Stream:
    """Nodes between one source and the outputs, with their dominators."""

    def __init__(self, program: Program, flow: Flow, graph: nx.DiGraph, source: fx.Node) -> None:
        self.program, self.flow = program, flow
        self.sink = program.graph.output_node()
        reached = {source, *nx.descendants(graph, source)} if source in graph else {source}
        ends = {self.sink, *nx.ancestors(graph, self.sink)} if self.sink in graph else set()
        self.graph = graph.subgraph(reached & ends)
        self.source = source
        self.order = {node: i for i, node in enumerate(program.graph.nodes)}

    @cached_property
    def inside(self) -> dict[fx.Node, tuple[int, int]]:
        """Interval of each node in the dominator tree: u dominates v where v's begins within u's."""
        above = nx.immediate_dominators(self.graph, self.source)
        tree = nx.DiGraph()
        tree.add_node(self.source)
        tree.add_edges_from((over, node) for node, over in above.items() if over not in (None, node))
        spans: dict[fx.Node, tuple[int, int]] = {}
        begun: dict[fx.Node, int] = {}
        for _, v, kind in nx.dfs_labeled_edges(tree, self.source):
            if kind == "forward":
                begun[v] = len(begun)
            elif kind == "reverse":
                spans[v] = (begun[v], len(begun))
        return spans

    def dominates(self, one: fx.Node, other: fx.Node) -> bool:
        low, high = self.inside[one]
        return low <= self.inside[other][0] < high

    def runs(self) -> Iterator[list[Segment]]:
        """Yield rows of atoms."""
        if self.source not in self.graph or self.sink not in self.graph:
            return
        below = nx.immediate_dominators(self.graph.reverse(copy=False), self.sink)
        visited: set[fx.Node] = set()
        for node in sorted(self.graph, key=self.order.__getitem__):
            chain = list(self._chain(node, below, visited))
            for points in self._alike(chain):
                yield from self._rows(points)

    def _chain(self, node: fx.Node, below: Mapping[fx.Node, Any], visited: set[fx.Node]) -> Iterator[fx.Node]:
        """Yield cut points from a node on: each dominates the next, which post-dominates it."""
        while node is not self.sink and node not in visited:
            visited.add(node)
            yield node
            after = below[node]
            while after is not self.sink and not self.dominates(node, after):
                after = below[after]
            node = after

    def _alike(self, chain: Sequence[fx.Node]) -> Iterator[list[fx.Node]]:
        """Yield the cut points of the same dims and dtype, in groups of at least two."""
        groups: dict[Hashable, list[fx.Node]] = {}
        for node in chain:
            shape = self.flow.dims.get(node)
            if shape and all(isinstance(dim, Dim) for dim in shape):
                key = (tuple(_key(dim) for dim in shape), node.meta["val"].dtype)
                groups.setdefault(key, []).append(node)
        yield from (points for points in groups.values() if len(points) > 1)

    def _rows(self, points: Sequence[fx.Node]) -> Iterator[list[Segment]]:
        """Yield the row of atoms between neighbours; those without parameters belong to the tail of the one before."""
        row: list[Segment] = []
        for entry, way_out in pairwise(points):
            atom = self._atom(entry, way_out)
            if atom.parameters and not is_written(entry):
                row.append(atom)
            elif row and not atom.parameters and row[-1].end is entry:
                row[-1] = replace(row[-1], tail=(*row[-1].tail, atom))
        if row:
            yield row

    def _atom(self, entry: fx.Node, way_out: fx.Node) -> Segment:
        nodes = self._between(entry, way_out)
        parameters = weights(self.program, nodes, self.flow)
        return Segment(entry, way_out, tuple(nodes), parameters, _signature(self.program, nodes, entry))

    def _between(self, entry: fx.Node, way_out: fx.Node) -> list[fx.Node]:
        """Return the nodes behind the entry up to and with the exit, in graph order."""
        (low, high), (gone, end) = self.inside[entry], self.inside[way_out]
        names = [n for n, (at, _) in self.inside.items() if low < at < high and not gone < at < end]
        return sorted(names, key=self.order.__getitem__)


def _key(dim: Dim) -> Hashable:
    """Return a key that is equal for dims that are the same, whichever objects represent them."""
    dim = find(dim)
    if dim.kind == "atom":
        return dim.serial if dim.size > 1 else 1
    return (dim.kind, *(_key(part) for part in dim.parts))


def _signature(program: Program, nodes: Sequence[fx.Node], entry: fx.Node) -> str:
    """Return a hash that is equal for parts of the same structure: operators, how they are joined, and the shapes of parameters."""
    place = {node: i for i, node in enumerate(nodes)} | {entry: -1}
    lines = [f"{node.target} {[_operand(program, one, place) for one in operands(node)]}" for node in nodes]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _operand(program: Program, node: fx.Node, place: Mapping[fx.Node, int]) -> str:
    if node in place:
        return str(place[node])
    if node.op == "get_attr":
        value = attribute(program.graph_module, str(node.target))
        return str(tuple(value.shape)) if isinstance(value, nn.Parameter) else "constant"
    return "side"
