"""Scores: how much each unit of an axis is worth, one row a score. They see any axis of any graph, through its members and contractions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.analysis import Analysis, Units
from fxprune.analysis.uniform import tied_by_table
from fxprune.calibration import Calibration, Objective
from fxprune.calibration.run import Observer, stream
from fxprune.errors import UsageError


@dataclass(frozen=True, eq=False)
class Worth:
    """The units of each group in the order in which they go, int64 [groups, size], and the error once k are gone [groups, size + 1]."""

    order: Tensor
    errors: Tensor

    def kept(self, count: int) -> list[int]:
        """The indices of the `count` units that stay, ascending, where there is one group."""
        return sorted(self.order[0, self.order.shape[1] - count :].tolist())

    def rows(self, count: int) -> list[list[int]]:
        """As `kept`, for each group."""
        return [sorted(row) for row in self.order[:, self.order.shape[1] - count :].tolist()]


@dataclass(frozen=True)
class Evidence:
    """What scores may use: the analysis, calibration data, what gradients are of, and the bytes that moments may take at a time."""

    analysis: Analysis
    data: Calibration | None = None
    objective: Objective = field(default_factory=Objective)
    memory: int = 0

    def see(self, meters: Sequence[Observer]) -> None:
        """One pass over the data; UsageError where there are none."""
        if self.data is None:
            raise UsageError(
                "this score needs calibration data: give --calibration FILE, or data=… in Python"
            )
        stream(self.analysis.program, self.data, meters, self.objective)


Rate: TypeAlias = Callable[[Evidence, Sequence[Units]], dict[Units, Worth]]


@dataclass(frozen=True)
class Score:
    """A row: what it is, the function, whether it needs data, and whether its errors of different axes are in one currency."""

    help: str
    rate: Rate
    needs_data: bool = True
    comparable: bool = True


def additive(units: Units, worth: Tensor) -> Worth:
    """Units of this worth each, float64 [count]: the least goes first, of equal ones the last."""
    groups = worth.reshape(units.groups, units.axis.size)
    order = torch.sort(groups, dim=1, descending=True, stable=True).indices.flip(1)
    errors = groups.gather(1, order).cumsum(1)
    return Worth(order, torch.cat([torch.zeros(units.groups, 1, dtype=torch.float64), errors], 1))


def share_order(analysis: Analysis, rated: Mapping[Units, Worth]) -> dict[Units, Worth]:
    """As rated, but what chooses from a table that layers share loses units in one order, by what they are worth to all of them."""
    by_name, found = {units.axis.name: units for units in rated}, dict(rated)
    for axes in tied_by_table(analysis, [units.axis for units in rated]):
        mean = _mean([rated[by_name[axis.name]] for axis in axes])
        found |= {by_name[axis.name]: mean for axis in axes}
    return found


def _mean(worths: Sequence[Worth]) -> Worth:
    totals = torch.zeros_like(worths[0].errors[:, 1:])
    for worth in worths:
        totals.scatter_add_(1, worth.order, worth.errors.diff(dim=1) / len(worths))
    order = torch.sort(totals, dim=1, descending=True, stable=True).indices.flip(1)
    errors = totals.gather(1, order).cumsum(1)
    return Worth(order, torch.cat([torch.zeros_like(errors[:, :1]), errors], 1))
