"""Random values are fixed on both sides, so that two programs that draw can be compared."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fxprune.analysis import analyze
from fxprune.dims import cut
from fxprune.ir import Program, Selection, copy_graph, rebuild
from fxprune.ir.random_values import describe_draw, random_nodes, recorded
from fxprune.rewrite.shrink import kept_masks, labels


def fix_random(program: Program, slim: Program, selection: Selection) -> tuple[Program, Program, str]:
    """Return both programs with drawn values as constants, and why nothing can be proven where that is not possible ("" where it is).

    The slim program gets the part of each value that the selection leaves.
    """
    drawing = random_nodes(program)
    if not drawing:
        return program, slim, ""
    why = f"the program {describe_draw(next(iter(drawing.values())))}, and "
    _, values = recorded(program, drawing, program.flat_inputs())
    fixed = _with_constants(program, values).replace(labels=labels(analyze(program), {}))
    analysis = analyze(fixed)
    kept, nodes = kept_masks(analysis, selection), fixed.reads()
    mine = {node.name: node for node in slim.graph.nodes}
    parts = {}
    for name, value in values.items():
        if name not in mine or not isinstance(value, Tensor):
            return program, slim, f"{why}{name} has no counterpart in the pruned program"
        parts[name] = cut(value, analysis.flow.dims[nodes[_constant(name)]], kept)
        wanted = mine[name].meta["val"].shape
        # A size that is an integer is settled; a symbolic one, which may depend on data, is of the inputs, and nothing cuts it.
        settled = [
            (size, got) for size, got in zip(wanted, parts[name].shape, strict=True) if isinstance(size, int)
        ]
        if any(size != got for size, got in settled):
            return program, slim, f"{why}what {name} draws can't be cut as the selection says"
    return fixed, _with_constants(slim, parts), ""


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
