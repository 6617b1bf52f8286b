"""Bypass: readers of a region's output read its input instead, and all that only the region needed is removed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from fxprune.analysis import analyze
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
    nodes = {node.name: node for node in graph.nodes}
    order = {node: i for i, node in enumerate(graph.nodes)}
    moved: dict[fx.Node, fx.Node] = {}
    regions = [analysis.region(name) for name in names]
    # A layer ends where its last branch does: of regions with one exit the longest decides, for it contains the others.
    longest = {r.exit: r for r in sorted(regions, key=lambda r: -order[nodes[r.entry]])}
    for region in sorted(longest.values(), key=lambda region: order[nodes[region.exit]]):
        entry, way_out = nodes[region.entry], nodes[region.exit]
        entry = moved.get(entry, entry)
        way_out.replace_all_uses_with(entry)
        moved = {node: entry if to is way_out else to for node, to in moved.items()} | {way_out: entry}
    return _without_dead(program, graph).replace(labels=labels(analysis, {}))


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
    propagate(slim, {node: sizes_of(node.meta["val"]) for node in calls})
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
