"""Second moments of what matrices read and of what leaves them: all that least squares needs to know of the data, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxprune.analysis import Matrix
from fxprune.calibration.run import Seen

ROWS = 1 << 14
"""So many rows at a time are widened to float64: an image has tens of thousands."""


@dataclass
class Moments:
    """Sums over rows: of the inputs, of their products [columns, columns], and of the products of output gradients [outputs, outputs]."""

    rows: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    products: Tensor = field(default_factory=lambda: torch.zeros(()))
    slopes: Tensor = field(default_factory=lambda: torch.zeros(()))

    def take(self, inputs: Tensor) -> None:
        """Inputs of one batch [rows, columns]."""
        for part in inputs.split(ROWS):
            wide = part.to(torch.float64)
            self.rows += len(wide)
            self.total = self.total + wide.sum(0)
            self.products = add_product(self.products, wide, wide)

    def take_slopes(self, slopes: Tensor) -> None:
        """Gradients of one batch at the outputs [rows, outputs]."""
        for part in slopes.split(ROWS):
            wide = part.to(torch.float64)
            self.slopes = add_product(self.slopes, wide, wide)

    def spread(self, centred: bool) -> Tensor:
        """The mean product of two columns, of their deviations from the mean where `centred`, [columns, columns]."""
        mean = self.total / self.rows
        return self.products / self.rows - (torch.outer(mean, mean) if centred else 0.0)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The sum of a total and leftᵀ @ right, in place where total has its size already."""
    return total.addmm_(left.t(), right) if total.dim() == 2 else left.t() @ right


class MomentObserver:
    """Gathers the moments of some matrices; with `slopes`, those of the gradients at their outputs as well."""

    def __init__(self, matrices: list[Matrix], slopes: bool = True) -> None:
        self.matrices = matrices
        self.values = frozenset(matrix.source.name for matrix in matrices)
        self.nodes = frozenset(matrix.node.name for matrix in matrices) if slopes else frozenset()
        self.parameters: frozenset[str] = frozenset()
        self.moments = {matrix.node.name: Moments() for matrix in matrices}

    def take(self, seen: Seen) -> None:
        """One batch."""
        for matrix in self.matrices:
            name = matrix.node.name
            self.moments[name].take(matrix.rows(seen.values[matrix.source.name]))
            for slopes in seen.slopes:
                if name in slopes:
                    self.moments[name].take_slopes(matrix.results(slopes[name]))


def moment_bytes(matrix: Matrix) -> int:
    """What the moments of a matrix take in memory."""
    value = matrix.node.meta["val"]
    outputs = int(value.shape[-matrix.form.outputs])
    weight = next(
        n for n in matrix.node.all_input_nodes if n is not matrix.source and n.meta["val"].dim() > 1
    )
    columns = weight.meta["val"].numel() // outputs
    return int(8 * (columns**2 + outputs**2))
