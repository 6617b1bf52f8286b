"""Bypass: readers of a region's output read its input instead, and all that only the region needed is removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxprune.analysis import Region, analyze
from fxprune.analysis.dim_inference import sizes_of
from fxprune.ir import Program, copy_graph, rebuild
from fxprune.ir.signature import without
from fxprune.rewrite.dead_code import remove_dead
from fxprune.rewrite.shape_propagation import propagate
from fxprune.rewrite.shrink import labels

_SIZE = torch.ops.aten.sym_size.int


def bypass(program: Program, names: Iterable[str]) -> Program:
    """Return a program without the regions of these names; the given one and its tensors stay as they are.

    Side inputs (masks, tables, an encoder's states, a bias that others read too) stay where something else reads them; parameters
    that nothing reads any more are gone. SelectionError where a name is no region of the program, or one that can't go.
    """
    names = list(dict.fromkeys(names))
    if not names:
        return program
    analysis = analyze(program)
    graph = copy_graph(program)
    edit = _Bypass(graph)
    for region in _outermost([analysis.region(name) for name in names], edit.order):
        edit.remove(region)
    return _without_dead(program, graph).replace(labels=labels(analysis, {}))


def _outermost(regions: Sequence[Region], order: Mapping[str, int]) -> list[Region]:
    """Return the regions that lie in no other, by the place of their exits in the graph."""
    gone: set[str] = set()
    chosen: list[Region] = []
    for region in sorted(regions, key=lambda region: -len(region.nodes)):
        chosen += [] if region.nodes <= gone else [region]
        gone |= region.nodes
    return sorted(chosen, key=lambda region: max(order[name] for name in region.exits))


class _Bypass:
    """Edit of a graph that removes regions, in the order of their exits."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.order = {name: i for i, name in enumerate(self.nodes)}
        self.moved: dict[fx.Node, fx.Node] = {}

    def remove(self, region: Region) -> None:
        """Let readers of each exit read its entry; a summand goes from the sum that has it now."""
        if region.addend:
            addend = self.nodes[region.addend]
            (total,) = addend.users
            self._replace(total, next(node for node in total.all_input_nodes if node is not addend))
            return
        for entry, way_out in sorted(
            zip(region.entries, region.exits, strict=True), key=lambda pair: self.order[pair[1]]
        ):
            self._replace(self.nodes[way_out], self.nodes[entry])

    def _replace(self, node: fx.Node, other: fx.Node) -> None:
        while other in self.moved:
            other = self.moved[other]
        node.replace_all_uses_with(other)
        self.graph.erase_node(node)
        self.moved[node] = other


def _without_dead(program: Program, graph: fx.Graph) -> Program:
    """Return the program of a graph that keeps only what its outputs need; every value is computed anew on fake tensors and checked.

    Spare outputs and inputs go with the region that needed them: outputs that other outputs were computed from, and inputs that were read.
    """
    slim = rebuild(program, graph, {})
    if program.spare:
        slim = _without_spare(program, slim)
    remove_dead(slim.graph_module)
    slim.graph_module.recompile()
    calls = [node for node in slim.graph.nodes if node.op != "output" and "val" in node.meta]
    propagate(slim, {node: sizes_of(node.meta["val"]) for node in calls}, program)
    return slim


def _without_spare(program: Program, slim: Program) -> Program:
    """Remove spare outputs that nothing needs any more, and spare inputs that nothing reads any more."""
    idle = {node.name for node in slim.placeholders() if not node.users}
    gone = _needed(program) - _needed(slim)
    slim = without(slim, (), [name for node, name in slim.spare_outputs().items() if node.name in gone])
    remove_dead(slim.graph_module)
    _measure_elsewhere(slim)
    unread = {node.name for node in slim.placeholders() if not node.users} - idle
    return without(slim, unread & slim.spare, ())


def _needed(program: Program) -> set[str]:
    """Return the names of the nodes that the outputs which are not spare are computed from."""
    spare, waiting = program.spare_outputs(), list(program.outputs())
    found: dict[fx.Node, None] = {}
    waiting = [each for each in waiting if isinstance(each, fx.Node) and each not in spare]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = None
            waiting += [source for source in node.all_input_nodes if not _is_measured(program, node, source)]
    return {node.name for node in found}


def _is_measured(program: Program, node: fx.Node, source: fx.Node) -> bool:
    """Return whether a node reads only the size of a spare input."""
    return node.target is _SIZE and source.name in program.spare


def _measure_elsewhere(program: Program) -> None:
    """Read sizes of inputs that stay instead of sizes of spare inputs of which nothing else is read any more."""
    spare = [node for node in program.placeholders() if node.name in program.spare and node.users]
    measured = [node for node in spare if all(user.target is _SIZE for user in node.users)]
    stay = [node for node in program.placeholders() if node not in measured]
    places = {str(n): (node, dim) for node in reversed(stay) for dim, n in enumerate(_shape(node))}
    for read in [user for node in measured for user in node.users]:
        wanted = str(read.meta["val"])
        if wanted in places:
            read.args = places[wanted]


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
