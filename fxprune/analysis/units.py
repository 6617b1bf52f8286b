"""Units that scores rank: the indices of an axis, or those of each unit of an outer axis separately (each head its own dims)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis.axes import Axis
from fxprune.dims import Dim, coordinates
from fxprune.dims.dim import factors


@dataclass(frozen=True)
class Units:
    """Units of an axis, numbered group by group; without an outer axis there is one group."""

    axis: Axis
    outer: Axis | None = None

    @property
    def groups(self) -> int:
        return self.outer.size if self.outer else 1

    @property
    def count(self) -> int:
        return self.groups * self.axis.size

    def along(self, dim: Dim, size: int = 0) -> Tensor:
        """Return the unit of each position of a dim, −1 where none, int64; `size` where it is not that of the example inputs."""
        own = _stretched(dim, self.axis.leaf, size)
        if self.outer is None:
            return own
        outer = _stretched(dim, self.outer.leaf, size)
        return torch.where((own >= 0) & (outer >= 0), outer * self.axis.size + own, -1)

    def lies(self, dim: Dim) -> bool:
        """Return whether a dim carries the axis."""
        return bool((coordinates(dim, self.axis.leaf) >= 0).any())

    def total(self, value: Tensor, dims: Sequence[Dim]) -> Tensor | None:
        """Sum a tensor by unit, float64 [count]; None where its dims don't carry the units.

        The outer axis may lie along the same dimension or along another one.
        """
        place = next((i for i, dim in enumerate(dims) if self.lies(dim)), None)
        if place is None:
            return None
        units = self.along(dims[place], value.shape[place])
        if bool((units >= 0).any()):
            return self._add(_reduced(value, (place,)), units)
        assert self.outer is not None
        carried = (i for i, d in enumerate(dims) if bool((coordinates(d, self.outer.leaf) >= 0).any()))
        other = next(carried, None)
        if other is None:
            return None
        own = _stretched(dims[place], self.axis.leaf, value.shape[place])
        outer = _stretched(dims[other], self.outer.leaf, value.shape[other])
        grid = torch.where((outer[:, None] >= 0) & (own >= 0), outer[:, None] * self.axis.size + own, -1)
        return self._add(_reduced(value, (other, place)), grid)

    def _add(self, values: Tensor, units: Tensor) -> Tensor:
        carried = units >= 0
        result = torch.zeros(self.count, dtype=torch.float64)
        return result.index_add_(0, units[carried], values.to("cpu", torch.float64)[carried])


def _stretched(dim: Dim, leaf: Dim, size: int) -> Tensor:
    """Return the coordinates along a dim; where its size is not that of the example inputs, its outermost factor is the batch."""
    found = coordinates(dim, leaf)
    if size in (0, len(found)):
        return found
    block = len(found) // factors(dim)[0].size
    return found[:block].repeat(size // block)


def _reduced(value: Tensor, places: tuple[int, ...]) -> Tensor:
    """Sum a tensor over all dimensions but these, which come in this order."""
    others = [i for i in range(value.dim()) if i not in places]
    left = sorted(places)
    summed = value.sum(others) if others else value
    return summed.permute([left.index(place) for place in places])
