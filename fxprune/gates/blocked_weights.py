"""Block-gated weights: the matrices that carry axes of given roles (neurons, heads), and the grid of blocks of each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fxprune.analysis import Analysis, Axis, Matrix, matrices
from fxprune.dims import BlockSizes, Dim, leaves
from fxprune.dims.blocks import aligned
from fxprune.ir import attribute


@dataclass(frozen=True, eq=False)
class BlockedWeight:
    """A matrix, the dimension of its weight (0 or 1) along which prunable axes lie, and the roles of these axes."""

    matrix: Matrix
    along: int
    roles: frozenset[str]


def find_blocked_weights(analysis: Analysis, roles: Collection[str]) -> list[BlockedWeight]:
    """Return the matrices that carry an exact axis of one of these roles; `along` is the outputs where both dimensions carry one."""
    axes = {axis.leaf: axis for axis in analysis.axes if axis.exact and axis.role in roles}
    nodes = analysis.program.reads()
    found = []
    for matrix in matrices(analysis.program, analysis.flow).values():
        dims = analysis.flow.dims[nodes[matrix.weight]]
        outputs = int(matrix.turned)
        places = [place for place in (outputs, 1 - outputs) if _carried(dims[place], axes)]
        if places and _is_flat(analysis, matrix):
            found.append(BlockedWeight(matrix, places[0], frozenset(_carried(dims[places[0]], axes))))
    return found


def _carried(dim: Dim, axes: dict[Dim, Axis]) -> set[str]:
    return {axes[leaf].role for leaf in leaves(dim) if leaf in axes}


def _is_flat(analysis: Analysis, matrix: Matrix) -> bool:
    """Return whether the weight is a matrix, or a kernel of one point."""
    shape = attribute(analysis.program.graph_module, matrix.weight).shape
    return all(size == 1 for size in shape[2:])


def grid(analysis: Analysis, site: BlockedWeight, along: int, across: int) -> tuple[BlockSizes, BlockSizes]:
    """Return the block sizes of a site's weight: at most `along` positions along its axes, `across` along the other dimension (0: all)."""
    dims = analysis.flow.dims[analysis.program.reads()[site.matrix.weight]]
    wanted = (along, across) if site.along == 0 else (across, along)
    rows, columns = (aligned(dim, size or dim.size) for dim, size in zip(dims[:2], wanted, strict=True))
    return rows, columns
