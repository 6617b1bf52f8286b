"""Scores: how much each unit of an axis is worth, one row a score. They see any axis of any graph, through its members and contractions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.analysis.axes import Analysis
from fxprune.analysis.linear_ops import Matrix, matrices
from fxprune.analysis.uniform import tied_by_table
from fxprune.analysis.units import Units
from fxprune.calibration.data import Calibration
from fxprune.calibration.objective import Objective
from fxprune.calibration.run import Observer, pack_by_bytes, stream
from fxprune.calibration.second_moments import MomentObserver, Moments, moment_bytes
from fxprune.errors import UsageError
from fxprune.ir.program import attribute
from fxprune.scores.gradients import GateObserver, NormObserver
from fxprune.scores.obs import Reader, eliminate, reader


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


def magnitude(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """The squared norm of a unit's weights over all members, each member scaled to a mean of one.

    Scaling keeps a large matrix from drowning a small one that the unit needs as much; vectors (biases, norms) don't count, unless
    the axis has nothing else.
    """
    return {units: additive(units, _magnitude(evidence, units)) for units in asked}


def _magnitude(evidence: Evidence, units: Units) -> Tensor:
    analysis = evidence.analysis
    nodes = analysis.program.reads()
    learned = [member for member in units.axis.members if member.learned]
    values = {member.name: attribute(analysis.program.graph, member.name).detach() for member in learned}
    wide = [member for member in learned if values[member.name].dim() > 1] or learned
    worth = torch.zeros(units.count, dtype=torch.float64)
    for member in wide:
        squares = values[member.name].abs().to(torch.float64).square()
        dims = list(analysis.flow.dims[nodes[member.name]])
        part = units.total(squares.movedim(member.dim, 0), [dims.pop(member.dim), *dims])
        worth += part / part.mean().clamp_min(1e-30) if part is not None else 0.0
    return worth


def chance(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """Uniform numbers, the same for the same axis and seed."""
    return {units: additive(units, _drawn(evidence.objective.seed, units)) for units in asked}


def _drawn(seed: int, units: Units) -> Tensor:
    digest = hashlib.sha256(f"{seed} {units.axis.name}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(units.count, generator=random, dtype=torch.float64)


def taylor(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """The magnitude of the loss's first-order change without the unit."""
    meter = GateObserver(evidence.analysis, asked)
    evidence.see([meter])
    return {units: additive(units, meter.first[units]) for units in asked}


def fisher(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """The square of that change: the diagonal of the Fisher information of gates on the units."""
    meter = GateObserver(evidence.analysis, asked)
    evidence.see([meter])
    return {units: additive(units, meter.second[units]) for units in asked}


def activation(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """The norm of a unit's activations times the norm of the weights that read it."""
    meter = NormObserver(evidence.analysis.flow, asked)
    evidence.see([meter])
    return {units: additive(units, meter.worth(units)) for units in asked}


def surgeon(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """The error of the readers' outputs after their best re-fit, weighted by the curvature of the loss; units go one after another.

    Axes that no matrix of weights reads (qk) get their diagonal Fisher, which is in the same currency. Moments that exceed
    `evidence.memory` are gathered in several passes.
    """
    known = matrices(evidence.analysis.program, evidence.analysis.flow)
    read = {units: _readers(evidence, known, units) for units in asked}
    limit = evidence.memory or max(evidence.analysis.program.parameter_bytes() // 2, 1 << 25)
    found: dict[Units, Worth] = {}
    gates = GateObserver(evidence.analysis, [units for units in asked if not read[units]])
    waiting: list[Observer] = [gates] if gates.parameters else []
    grouped = pack_by_bytes(
        [u for u in asked if read[u]], lambda u: sum(moment_bytes(m) for m, _ in read[u]), limit
    )
    for group in grouped or [[]]:
        meter = MomentObserver(list({m.node.name: m for u in group for m, _ in read[u]}.values()))
        if waiting or group:
            evidence.see([meter, *waiting])
        waiting = []
        for units in group:
            found[units] = _eliminated(evidence, units, read[units], meter.moments)
    found |= {units: additive(units, gates.second[units]) for units in gates.asked}
    return {units: found[units] for units in asked}


Read: TypeAlias = list[tuple[Matrix, Tensor]]


def _readers(evidence: Evidence, known: dict[str, Matrix], units: Units) -> Read:
    """The matrices that sum over the units, with the columns of each unit [count, n]."""
    found: Read = []
    for contraction in evidence.analysis.flow.contractions:
        matrix = known.get(contraction.node.name)
        places = units.along(contraction.dim)
        if matrix is not None and bool((places >= 0).any()):
            spread = matrix.columns(places)
            columns = torch.sort(spread, stable=True).indices[int((spread < 0).sum()) :]
            found.append((matrix, columns.reshape(units.count, -1)))
    return found


def _eliminated(evidence: Evidence, units: Units, read: Read, moments: dict[str, Moments]) -> Worth:
    readers: list[Reader] = []
    for matrix, columns in read:
        weight = attribute(evidence.analysis.program.graph, matrix.weight).detach()
        readers.append(reader(matrix, weight, moments[matrix.node.name], columns))
    return Worth(*eliminate(readers, units.groups, units.axis.size))


SCORES: dict[str, Score] = {
    "magnitude": Score(
        "norm of the unit's weights, over all coupled parameters", magnitude, needs_data=False, comparable=False
    ),
    "random": Score("uniform numbers, to compare with", chance, needs_data=False, comparable=False),
    "activation": Score("norm of its activations × norm of the weights that read them (Wanda)", activation, comparable=False),
    "taylor": Score("first-order change of the loss without it: magnitude of the sum of weight × gradient", taylor, comparable=False),
    "fisher": Score("the square of that: diagonal Fisher information of gates on the units", fisher),
    "obs": Score("error of the readers after their best re-fit, one after another (ZipLM)", surgeon),
}  # fmt: skip
