"""Bypass: what reads a region's output reads its input instead; all that only the region needed is gone. Apply: a whole selection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import fx

from fxprune.analysis import Analysis, analyze
from fxprune.flow import sizes
from fxprune.fold import remove_dead
from fxprune.program import Program, copy_graph, rebuild
from fxprune.propagate import propagate
from fxprune.selection import Selection
from fxprune.shrink import labels, shrink


def bypass(program: Program, names: Iterable[str]) -> Program:
    """A program without the regions of these names; the given one and its tensors stay as they are.

    Side inputs (masks, tables, an encoder's states, a bias that others read too) stay alive where something else reads them; parameters
    that nothing reads any more are gone. SelectionError where a name is no region of the program, or one that can't go.
    """
    names = list(names)
    return bypassed(analyze(program), names) if names else program


def bypassed(analysis: Analysis, names: Iterable[str]) -> Program:
    """As `bypass`, for many candidates of one program that is analysed once."""
    program = analysis.program
    graph = copy_graph(program)
    nodes = {node.name: node for node in graph.nodes}
    order = {node: i for i, node in enumerate(graph.nodes)}
    moved: dict[fx.Node, fx.Node] = {}
    regions = [analysis.region(name) for name in dict.fromkeys(names)]
    # A layer ends where its last branch does: of regions with one exit the longest decides, for it holds the others.
    longest = {r.exit: r for r in sorted(regions, key=lambda r: -order[nodes[r.entry]])}
    for region in sorted(longest.values(), key=lambda region: order[nodes[region.exit]]):
        entry, way_out = nodes[region.entry], nodes[region.exit]
        entry = moved.get(entry, entry)
        way_out.replace_all_uses_with(entry)
        moved = {node: entry if to is way_out else to for node, to in moved.items()} | {way_out: entry}
    return _without_dead(program, graph).replace(labels=labels(analysis, {}))


def apply(program: Program, selection: Selection) -> Program:
    """The program without the regions that a selection removes, and shrunk to the units that it keeps."""
    return shrink(bypass(program, selection.removed), replace(selection, removed=()))


def _without_dead(program: Program, graph: fx.Graph) -> Program:
    """The program of a graph that keeps only what its outputs need; every value is computed anew on fake tensors and checked."""
    slim = rebuild(program, graph, {})
    remove_dead(slim.graph)
    slim.graph.recompile()
    calls = [node for node in slim.graph.graph.nodes if node.op != "output" and "val" in node.meta]
    propagate(slim, {node: sizes(node.meta["val"]) for node in calls})
    return slim
