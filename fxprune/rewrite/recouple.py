"""What layers share is cut once: where all choices of one shared value take the same indices, the value itself loses the others.

    bias ─┬─ index_select(bias, i) ─ layer 1              bias[i] ─┬─ layer 1
          └─ index_select(bias, i) ─ layer 2     becomes           └─ layer 2

The inverse of `fxprune.rewrite.shared_tables`, for places that have one table and no choices (a stock model).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxprune.analysis.axes import Analysis, analyze
from fxprune.analysis.dim_inference import flat_dims
from fxprune.analysis.uniform import choices
from fxprune.dims.dim import Dim, leaves
from fxprune.ir.program import Program, attribute, copy_graph, rebuild
from fxprune.rewrite.shared_tables import rejoin
from fxprune.rewrite.shrink import shrink_atoms


def recoupled(program: Program) -> Program:
    """The program with shared values cut where all that read them choose the same indices; it computes the same."""
    analysis, kept, whole = analyze(program), dict[Dim, Tensor](), dict[str, Tensor]()
    for leaf, nodes in choices(analysis).items():
        indices = {str(node.target): attribute(program.graph, str(node.target)) for node in nodes.values()}
        first, *others = indices.values()
        if all(torch.equal(first, each) for each in others) and _only_chosen(analysis, leaf, set(nodes)):
            kept[leaf] = torch.zeros(leaf.size, dtype=torch.bool).index_fill(0, first.cpu(), 1)
            whole |= dict.fromkeys(indices, torch.arange(len(first), device=first.device))
    if not kept:
        return program
    cut = shrink_atoms(analysis, kept)
    return rejoin(rebuild(cut, copy_graph(cut), whole))


def _only_chosen(analysis: Analysis, leaf: Dim, chosen: set[fx.Node]) -> bool:
    """Whether nothing but these choices reads what carries an atom, apart from what carries it on."""
    carrying = {
        node
        for node, dims in analysis.flow.dims.items()
        if node not in chosen and any(leaf in leaves(dim) for dim in flat_dims(dims))
    }
    return {user for node in carrying for user in node.users} <= carrying | chosen
