"""Score registry: the type of a row, the inputs of a score, and its result, the worth of each unit of an axis.

Scores apply to any axis of any graph, through its members and contractions. The table SCORES is in `fxprune.scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.analysis import Analysis, Units
from fxprune.analysis.uniform import tied_by_table
from fxprune.calibration import Calibration, Objective
from fxprune.calibration.run import Observer, run_calibration
from fxprune.calibration.segments import segment_bytes, segments_of
from fxprune.errors import UsageError


@dataclass(frozen=True, eq=False)
class Worth:
    """Result of a score for one axis: in each group of units, their order of removal and the error after each removal.

    `order` int64 [groups, size], the first to be removed first; `errors` [groups, size + 1], at k the error once k units are removed.
    """

    order: Tensor
    errors: Tensor

    def kept(self, count: int) -> list[int]:
        """Return the indices of the `count` units that stay, ascending, for an axis with one group."""
        return sorted(self.order[0, self.order.shape[1] - count :].tolist())

    def rows(self, count: int) -> list[list[int]]:
        """Return the indices of the `count` units that stay in each group, ascending."""
        return [sorted(row) for row in self.order[:, self.order.shape[1] - count :].tolist()]


@dataclass(frozen=True)
class Evidence:
    """Inputs of a score: the analysis, the calibration data, the objective that gradients are of, and a memory limit.

    `memory` is the number of bytes that moments may take in one pass over the data; 0 leaves the limit to the score. `segment` is the
    limit of the weights that are run at a time (see `fxprune.calibration.segments`); None: that of the program, by where it lies.
    """

    analysis: Analysis
    data: Calibration | None = None
    objective: Objective = field(default_factory=Objective)
    memory: int = 0
    segment: int | None = None

    @property
    def in_segments(self) -> bool:
        """Whether the program is run in several segments."""
        program = self.analysis.program
        limit = segment_bytes(program) if self.segment is None else self.segment
        return len(segments_of(program, limit)) > 1

    def see(self, meters: Sequence[Observer]) -> None:
        """Run observers over the calibration data in one pass; UsageError where there is no data."""
        if self.data is None:
            raise UsageError(
                "this score needs calibration data: give --calibration FILE, or data=… in Python"
            )
        run_calibration(self.analysis.program, self.data, meters, self.objective, self.segment)


Rate: TypeAlias = Callable[[Evidence, Sequence[Units]], dict[Units, Worth]]


@dataclass(frozen=True)
class Score:
    """Row of the table SCORES: a description, the function, and two properties.

    `needs_data`: the function needs calibration data. `comparable`: errors of different axes are on one scale and can be added.
    """

    help: str
    rate: Rate
    needs_data: bool = True
    comparable: bool = True


def additive(units: Units, worth: Tensor) -> Worth:
    """Return the order and the cumulative errors for scores that add up, float64 [count]: the least goes first, of equal ones the last."""
    return _ranked(worth.reshape(units.groups, units.axis.size))


def share_order(analysis: Analysis, rated: Mapping[Units, Worth]) -> dict[Units, Worth]:
    """Return the results with one common order, by mean worth, for the axes that choose units of one table which layers share."""
    by_name, found = {units.axis.name: units for units in rated}, dict(rated)
    for axes in tied_by_table(analysis, [units.axis for units in rated]):
        mean = _mean([rated[by_name[axis.name]] for axis in axes])
        found |= {by_name[axis.name]: mean for axis in axes}
    return found


def _mean(worths: Sequence[Worth]) -> Worth:
    totals = torch.zeros_like(worths[0].errors[:, 1:])
    for worth in worths:
        totals.scatter_add_(1, worth.order, worth.errors.diff(dim=1) / len(worths))
    return _ranked(totals)


def _ranked(worth: Tensor) -> Worth:
    order = torch.sort(worth, dim=1, descending=True, stable=True).indices.flip(1)
    errors = worth.gather(1, order).cumsum(1)
    return Worth(order, torch.cat([torch.zeros_like(errors[:, :1]), errors], 1))
