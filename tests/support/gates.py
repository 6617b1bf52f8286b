"""Reference gates for the law about them: a 0/1 mask per axis, multiplied into the graph at every sum over the axis."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxprune import Program, Selection, analyze
from fxprune.analysis import Analysis
from fxprune.dims import Dim, Kept, leaves
from fxprune.dims.masks import keep_mask
from fxprune.ir import attribute, copy_graph, rebuild
from fxprune.rewrite.shrink import kept_masks
from fxprune.rules import Contraction


def gated(program: Program, selection: Selection) -> Program:
    """The program at its full sizes, with the removed units of each axis multiplied by 0 wherever they are summed over."""
    analysis = analyze(program)
    kept = kept_masks(analysis, selection)
    graph = copy_graph(program)
    copies = dict(zip(program.graph.nodes, graph.nodes, strict=True))
    masks: dict[str, Tensor] = {}
    for (node, operand), axes in _gates(analysis, selection).items():
        mask = _mask(analysis, operand, {leaf: kept[leaf] for leaf in axes})
        _multiply(graph, (copies[node], copies[operand]), mask, masks)
    return rebuild(program, graph, {**_tensors(program), **masks})


def _gates(analysis: Analysis, selection: Selection) -> dict[tuple[fx.Node, fx.Node], list[Dim]]:
    """For each edge (node that sums, operand that is gated) the axes that are summed over there."""
    gates: dict[tuple[fx.Node, fx.Node], list[Dim]] = {}
    for leaf in (analysis.axis(name).leaf for name in selection):
        for found in analysis.flow.contractions:
            if leaf in leaves(found.dim):
                edge = (found.node, _gated_operand(analysis, found, leaf))
                gates.setdefault(edge, []).append(leaf)
    return gates


def _gated_operand(analysis: Analysis, found: Contraction, leaf: Dim) -> fx.Node:
    """An activation that carries the axis, else (a cell's own state has no node) a weight that does."""
    carriers = [node for node in found.operands if any(leaf in leaves(d) for d in analysis.flow.dims[node])]
    return min(carriers, key=lambda node: node not in analysis.flow.varies)


def _mask(analysis: Analysis, operand: fx.Node, kept: Kept) -> Tensor:
    """1 where all places of an operand stay; of size 1 along the dims that do not carry the axis."""
    shape = analysis.flow.dims[operand]
    mask = torch.ones((1,) * len(shape), dtype=operand.meta["val"].dtype)
    for place, dim in enumerate(shape):
        if any(leaf in kept for leaf in leaves(dim)):
            sizes = [dim.size if i == place else 1 for i in range(len(shape))]
            mask = mask * keep_mask(dim, kept).reshape(sizes)
    return mask


def _multiply(graph: fx.Graph, edge: tuple[fx.Node, fx.Node], mask: Tensor, masks: dict[str, Tensor]) -> None:
    node, operand = edge
    name = f"gate_{len(masks)}"
    masks[name] = mask
    with graph.inserting_before(node):
        gate = graph.get_attr(name)
        gate.meta["val"] = mask
        product = graph.call_function(torch.ops.aten.mul.Tensor, (operand, gate))
    node.replace_input_with(operand, product)


def _tensors(program: Program) -> dict[str, Tensor]:
    found = program.graph.find_nodes(op="get_attr")
    return {str(node.target): attribute(program.graph_module, str(node.target)) for node in found}
