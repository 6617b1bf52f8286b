"""Random operators: their values are fixed on both sides, so that two programs that draw can be compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.analysis import analyze
from fxprune.dims import cut
from fxprune.ir import Program, Selection, copy_graph, rebuild, source_line
from fxprune.ir.compare import relative_difference
from fxprune.ir.interpreter import Recorder
from fxprune.rewrite.shrink import kept_masks, labels


def random_nodes(program: Program) -> dict[str, fx.Node]:
    """Return the nodes that draw, by name: those that torch marks as random, and whose values differ between two seeds."""
    marked = [node for node in program.graph.nodes if _may_draw(node)]
    if not marked:
        return {}
    one, other = (_values(program, marked, seed) for seed in (0, 1))
    return {node.name: node for node in marked if not _same(one.get(node.name), other.get(node.name))}


def fix_random(program: Program, slim: Program, selection: Selection) -> tuple[Program, Program, str]:
    """Return both programs with drawn values as constants, and why nothing can be proven where that is not possible ("" where it is).

    The slim program gets the part of each value that the selection leaves.
    """
    drawing = random_nodes(program)
    if not drawing:
        return program, slim, ""
    first = next(iter(drawing.values()))
    why = f"the program draws random numbers ({first.target}{_place(first)}), and "
    values = _values(program, list(drawing.values()), 0)
    fixed = _with_constants(program, values).replace(labels=labels(analyze(program), {}))
    analysis = analyze(fixed)
    kept, nodes = kept_masks(analysis, selection), fixed.reads()
    mine = {node.name: node for node in slim.graph.nodes}
    parts = {}
    for name, value in values.items():
        if name not in mine or not isinstance(value, Tensor):
            return program, slim, f"{why}{name} has no counterpart in the pruned program"
        parts[name] = cut(value, analysis.flow.dims[nodes[_constant(name)]], kept)
        if parts[name].shape != mine[name].meta["val"].shape:
            return program, slim, f"{why}what {name} draws can't be cut as the selection says"
    return fixed, _with_constants(slim, parts), ""


def _may_draw(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags


def _values(program: Program, nodes: list[fx.Node], seed: int) -> dict[str, object]:
    recorder = Recorder(program, {node.name for node in nodes}, copies=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        recorder.run_flat(program.flat_inputs())
    return {node.name: value for node, value in recorder.values.items()}


def _same(one: object, other: object) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(relative_difference(a, b) == 0 if isinstance(a, Tensor) else a == b for a, b in pairs)


def _constant(name: str) -> str:
    return f"_drawn_{name}"


def _with_constants(program: Program, values: Mapping[str, object]) -> Program:
    """Return the program with buffers in place of some nodes."""
    graph, tensors = copy_graph(program), {}
    for node in list(graph.nodes):
        if node.name in values:
            tensors[_constant(node.name)] = values[node.name]
            with graph.inserting_before(node):
                made = graph.get_attr(_constant(node.name))
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)
    return rebuild(program, graph, tensors)  # type: ignore[arg-type]


def _place(node: fx.Node) -> str:
    line = source_line(node)
    return f" at {line}" if line else ""
