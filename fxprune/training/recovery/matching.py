"""Matching: the values inside a pruned program that its original has as well, found by the graphs' structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import networkx as nx
import torch
from torch import Tensor, fx

from fxprune.analysis import analyze
from fxprune.calibration.refits import Cut
from fxprune.dims import Dim, Kept, changes, cut
from fxprune.dims.masks import new_size
from fxprune.ir import Program, Selection, attribute, is_free

MOST = 16
"""Maximum number of values that are matched, evenly spread."""


@dataclass(frozen=True, eq=False)
class Match:
    """A node of both programs, by name: `cut` leaves of the original's value what the pruned program has of it."""

    name: str
    cut: Callable[[Tensor], Tensor]


def matched_values(
    original: Program, pruned: Program, selection: Selection | None = None, most: int = MOST
) -> tuple[Match, ...]:
    """Return the nodes, in graph order, whose values are to be matched, at most `most`.

    They are the exits of regions and the values that all paths from the inputs to the outputs pass (dominators), of those with no weights
    between them the last. `selection` leads from the original to the pruned program, so that values which lost units are compared at the
    others; without one, only values of equal sizes are. Outputs are not among them: they are compared anyway.
    """
    cuts = _cuts(original, selection or Selection())
    exits = {name for region in analyze(pruned).regions if not region.why for name in region.exits}
    narrow = _dominators(pruned.graph, pruned.named_outputs().values())
    outputs = {node.name for node in pruned.named_outputs().values()}
    counts = _weights_before(pruned)
    last: dict[int, Match] = {}
    for node in pruned.graph.nodes:
        wanted = (node.name in exits or node in narrow) and node.name not in outputs and counts[node]
        own = cuts(node) if wanted else None
        if own:
            last[counts[node]] = Match(node.name, own)
    return _spread(list(last.values()), most)


def _cuts(original: Program, selection: Selection) -> Callable[[fx.Node], Callable[[Tensor], Tensor] | None]:
    """Return a function from a node of the pruned program to the cut of the original's value there; None where they have no such pair."""
    removed = Cut.of(original, selection)
    analysis, kept = removed.analysis, removed.kept
    nodes = {node.name: node for node in analysis.program.graph.nodes}
    own = {node.name for node in original.graph.nodes}

    def found(node: fx.Node) -> Callable[[Tensor], Tensor] | None:
        other = nodes.get(node.name) if node.name in own else None
        if other is None or not _is_same(node, other):
            return None
        dims = analysis.flow.dims[other]
        sizes = zip(node.meta["val"].shape, other.meta["val"].shape, dims, strict=True)
        return partial(cut, dims=dims, kept=kept) if all(_fits(*each, kept) for each in sizes) else None

    return found


def _is_same(node: fx.Node, other: fx.Node) -> bool:
    """Return whether two nodes compute floating-point values of as many dims by the same operator."""
    value, wanted = node.meta.get("val"), other.meta.get("val")
    if node.op != "call_function" or node.target != other.target:
        return False
    if not isinstance(value, Tensor) or not isinstance(wanted, Tensor):
        return False
    return value.is_floating_point() and value.ndim == wanted.ndim


def _fits(size: int | torch.SymInt, before: int | torch.SymInt, dim: Dim, kept: Kept) -> bool:
    """Return whether a size is what a selection leaves of the size before."""
    if is_free(size) or is_free(before):
        return is_free(size) and is_free(before) and not changes(dim, kept)
    return int(size) == (new_size(dim, kept) if changes(dim, kept) else int(before))


def _dominators(graph: fx.Graph, outputs: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes that all paths from the placeholders to the outputs pass."""
    paths = nx.DiGraph((source, node) for node in graph.nodes for source in node.all_input_nodes)
    paths.add_edges_from(("start", node) for node in graph.find_nodes(op="placeholder"))
    paths.add_edges_from((node, "end") for node in outputs)
    if "end" not in paths or not nx.has_path(paths, "start", "end"):
        return set()
    above = nx.immediate_dominators(paths, "start")
    found, current = set[fx.Node](), above["end"]
    while current != "start":
        found.add(current)
        current = above[current]
    return found


def _weights_before(program: Program) -> dict[fx.Node, int]:
    """Return how many nodes up to each one, itself included, read a matrix of the program's weights."""
    found, count = dict[fx.Node, int](), 0
    for node in program.graph.nodes:
        read = [source for source in node.all_input_nodes if source.op == "get_attr"]
        count += any(attribute(program.graph_module, str(each.target)).ndim > 1 for each in read)
        found[node] = count
    return found


def _spread(matches: Sequence[Match], most: int) -> tuple[Match, ...]:
    """Return at most so many, evenly spread, the last one included."""
    step = max(1, -(-len(matches) // most))
    return tuple(matches[::-1][::step][::-1])
