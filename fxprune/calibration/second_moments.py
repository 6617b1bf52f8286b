"""Second moments: sums of products of the inputs of matrices, and of the gradients at their outputs, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxprune.analysis import Matrix
from fxprune.calibration.run import BatchRecord, Observer
from fxprune.storage.devices import in_float64

ROWS = 1 << 14
"""Number of rows that are converted to float64 at a time: an image has tens of thousands."""


@dataclass
class Moments:
    """Sums over rows: the inputs [columns], their products [columns, columns], the products of output gradients [outputs, outputs]."""

    rows: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    products: Tensor = field(default_factory=lambda: torch.zeros(()))
    slopes: Tensor = field(default_factory=lambda: torch.zeros(()))

    def take(self, inputs: Tensor) -> None:
        """Add the inputs of one batch [rows, columns]."""
        for part in inputs.split(ROWS):
            wide = in_float64(part)
            self.rows = self.rows + len(wide)
            self.total = self.total + wide.sum(0)
            self.products = add_product(self.products, wide, wide)

    def take_slopes(self, slopes: Tensor) -> None:
        """Add the gradients of one batch at the outputs [rows, outputs]."""
        for part in slopes.split(ROWS):
            wide = in_float64(part)
            self.slopes = add_product(self.slopes, wide, wide)

    def sums(self) -> tuple[Tensor, ...]:
        """Return all sums."""
        return self.rows, self.total, self.products, self.slopes

    def spread(self, centred: bool) -> Tensor:
        """Return the mean products of columns [columns, columns]; if `centred`, of their deviations from the mean (the covariance)."""
        mean = self.total / self.rows
        return self.products / self.rows - (torch.outer(mean, mean) if centred else 0.0)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return total + leftᵀ @ right, computed in place unless `total` is the initial scalar zero; of matrices or batches of them."""
    if total.dim() < 2:
        return left.mT @ right
    return total.addmm_(left.mT, right) if total.dim() == 2 else total.baddbmm_(left.mT, right)


class MomentObserver(Observer):
    """Observer of the moments of some matrices; with `slopes`, those of the gradients at their outputs as well."""

    def __init__(self, matrices: list[Matrix], slopes: bool = True) -> None:
        self.matrices = matrices
        self.values = frozenset(matrix.source.name for matrix in matrices)
        self.nodes = frozenset(matrix.node.name for matrix in matrices) if slopes else frozenset()
        self.moments = {matrix.node.name: Moments() for matrix in matrices}
        self._open = list(self.moments)  # matrices whose sums are not complete

    def sums(self, left: frozenset[str]) -> Iterator[Tensor]:
        """Yield the sums of the matrices that are not left, each once."""
        for name in [name for name in self._open if name not in left]:
            self._open.remove(name)
            yield from self.moments[name].sums()

    def take(self, seen: BatchRecord) -> None:
        """Add one batch of one segment."""
        for matrix in self.matrices:
            name = matrix.node.name
            if name not in seen.nodes:
                continue
            self.moments[name].take(matrix.rows(seen.values[matrix.source.name]))
            for slopes in seen.slopes:
                if name in slopes:
                    self.moments[name].take_slopes(matrix.results(slopes[name]))


def moment_bytes(matrix: Matrix) -> int:
    """Return the memory that the moments of a matrix take, in bytes."""
    outputs, columns = matrix.sizes
    return int(8 * (columns**2 + outputs**2))
