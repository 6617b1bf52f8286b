"""Matching: the values inside a pruned program that its original has as well, with the same sizes, found by the graphs' structure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import networkx as nx
from torch import Tensor, fx

from fxprune.analysis import analyze
from fxprune.ir import Program, attribute, is_free

MOST = 16
"""Maximum number of values that are matched, evenly spread."""


def matched_values(original: Program, pruned: Program, most: int = MOST) -> tuple[str, ...]:
    """Return the nodes, by name and in graph order, whose values are to be matched, at most `most`.

    They are the exits of regions and the values that all paths from the inputs to the outputs pass (dominators), in both programs with
    equal sizes; of those with no weights between them the last. Outputs are not among them: they are compared anyway.
    """
    theirs = {node.name: node for node in original.graph.nodes}
    exits = {name for region in analyze(pruned).regions if not region.why for name in region.exits}
    narrow = _dominators(pruned.graph, pruned.named_outputs().values())
    outputs = {node.name for node in pruned.named_outputs().values()}
    counts = _weights_before(pruned)
    last: dict[int, str] = {}
    for node in pruned.graph.nodes:
        wanted = node.name in exits or node in narrow
        if wanted and node.name not in outputs and counts[node] and _is_same(node, theirs.get(node.name)):
            last[counts[node]] = node.name
    return _spread(list(last.values()), most)


def _is_same(node: fx.Node, other: fx.Node | None) -> bool:
    """Return whether two nodes compute floating-point values of the same sizes by the same operator."""
    if other is None or node.op != "call_function" or node.target != other.target:
        return False
    value, wanted = node.meta.get("val"), other.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(wanted, Tensor) or not value.is_floating_point():
        return False
    sizes = zip(value.shape, wanted.shape, strict=False)
    return value.ndim == wanted.ndim and all(
        (is_free(a) and is_free(b)) or (not is_free(a) and not is_free(b) and int(a) == int(b))
        for a, b in sizes
    )


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


def _spread(names: Sequence[str], most: int) -> tuple[str, ...]:
    """Return at most so many of the names, evenly spread, the last one included."""
    step = max(1, -(-len(names) // most)) if most else len(names) + 1
    return tuple(names[::-1][::step][::-1]) if most else ()
