"""Optimal brain surgeon for units: remove those of least error first, and re-fit the readers' other weights after each step.

Source: ZipLM (arXiv 2302.04089), with the outputs weighted by the curvature of the loss (K-FAC), so that errors of different readers
are on one scale: the expected change of the loss (or squared distance of the model's output).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.analysis import Matrix, Units, matrices
from fxprune.calibration.memory import moments_limit
from fxprune.calibration.processes import agreed
from fxprune.calibration.run import Observer, pack_by_bytes
from fxprune.calibration.second_moments import MomentObserver, Moments, moment_bytes
from fxprune.ir import attribute
from fxprune.scores.base import Evidence, Worth, additive
from fxprune.scores.gradients import GateObserver
from fxprune.storage import let_go
from fxprune.storage.devices import in_float64, on_device, summed_there

ReaderColumns: TypeAlias = list[tuple[Matrix, Tensor]]


_DAMPING = 1e-2
"""Damping: this share of the mean of the input moments' diagonal is added to the diagonal."""

COMPACT = 1 / 4
"""Share of removed columns from which on they are left out: each step updates all that are there."""

STEPS = 48
"""Approximate number of steps that remove all units of an axis; the readers are updated after each."""


@dataclass
class Reader:
    """Matrix that reads the units: the inverse of its input moments, its weights W [outputs, columns], the columns of each unit [units, n].

    `curved` is S·W, with S the second moment of the output gradients (None: the identity). Columns of removed units are left out of all
    once they are COMPACT of them.
    """

    inverse: Tensor
    weight: Tensor
    columns: Tensor
    curved: Tensor = None  # type: ignore[assignment]  # the weights, where it is not given

    def __post_init__(self) -> None:
        self.curved = self.weight if self.curved is None else self.curved
        self._left = torch.ones(len(self.inverse), dtype=torch.bool, device=self.inverse.device)

    def costs(self, units: Tensor) -> Tensor:
        """Return the cost of removing each unit alone, after the best re-fit of the rest."""
        columns = self.columns[units]
        if columns.shape[1] == 1:
            flat = columns[:, 0]
            squares: Tensor = (self.weight[:, flat] * self.curved[:, flat]).sum(0)
            return squares / self.inverse[flat, flat]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        # Units × columns × outputs.
        parts, curved = (value[:, columns].permute(1, 2, 0) for value in (self.weight, self.curved))
        # The trace of B⁻¹·P·Cᵀ: of few columns and many outputs, P·Cᵀ is small.
        solved = torch.linalg.solve(blocks, parts @ curved.mT)
        costs: Tensor = solved.diagonal(dim1=1, dim2=2).sum(1)
        return costs

    def remove(self, units: Tensor) -> float:
        """Remove units at once, re-fit the rest, and return the cost."""
        gone = self.columns[units].flatten()
        read = torch.cat([self.weight[:, gone].t(), self.inverse[gone]], 1)
        solved = torch.linalg.solve(self.inverse[gone][:, gone], read)
        outputs = self.weight.shape[0]
        cost = float((solved[:, :outputs] * self.curved[:, gone].t()).sum())
        self._update(gone, solved[:, outputs:])
        self._left[gone] = False
        if int(self._left.sum()) <= (1 - COMPACT) * len(self._left):
            self._compact()
        return cost

    def _update(self, gone: Tensor, change: Tensor) -> None:
        flat = self.curved is self.weight
        self.weight = torch.addmm(self.weight, self.weight[:, gone], change, alpha=-1)
        self.curved = (
            self.weight if flat else torch.addmm(self.curved, self.curved[:, gone], change, alpha=-1)
        )
        self.inverse = torch.addmm(self.inverse, self.inverse[:, gone], change, alpha=-1)

    def _compact(self) -> None:
        """Leave out the columns of removed units."""
        places = self._left.cumsum(0) - 1
        # Those of removed units are not asked for again.
        self.columns = torch.where(self._left[self.columns], places[self.columns], 0)
        self.inverse = self.inverse[self._left][:, self._left]
        flat, self.weight = self.curved is self.weight, self.weight[:, self._left]
        self.curved = self.weight if flat else self.curved[:, self._left]
        self._left = self._left[self._left]


def reader(matrix: Matrix, weight: Tensor, moments: Moments, columns: Tensor) -> Reader:
    """Return a reader for a parameter and its moments; these are centred where a bias makes up for the mean of the removed inputs."""
    spread = moments.spread(centred=bool(matrix.bias))
    rounding = 1e-10 * moments.spread(centred=False).diagonal().mean().clamp_min(1e-20)
    ridge = _DAMPING * spread.diagonal().mean().maximum(rounding)
    spread.diagonal().add_(ridge)
    wide = in_float64(matrix.read(weight)).to(spread.device)
    # cholesky_inverse is up to thirty times slower on the CPU.
    inverse = torch.cholesky_solve(torch.eye(len(spread)).to(spread), torch.linalg.cholesky(spread))
    slopes = moments.slopes.to(wide)
    curved = slopes @ wide if slopes.dim() else torch.zeros_like(wide)
    return Reader(inverse, wide, columns.to(inverse.device), curved)


def elimination_order(readers: list[Reader], groups: int, size: int) -> tuple[Tensor, Tensor]:
    """Return (order, errors): in each group the units in order of removal [groups, size], and cumulative costs [groups, size + 1].

    Every step removes equally many units from each group.
    """
    device = readers[0].inverse.device
    left = torch.arange(groups * size, device=device).reshape(groups, size)
    order: list[Tensor] = []
    errors = [torch.zeros(groups, dtype=torch.float64, device=device)]
    while left.shape[1]:
        count = min(max(1, size // STEPS), left.shape[1])
        costs = torch.stack([r.costs(left.flatten()) for r in readers]).sum(0).reshape(left.shape)
        ranked = costs.argsort(dim=1, stable=True)
        chosen, rest = left.gather(1, ranked[:, :count]), ranked[:, count:].sort(1).values
        paid = sum(r.remove(chosen.flatten()) for r in readers)
        shares = costs.gather(1, ranked[:, :count]).clamp_min(0)
        errors += _spread(errors[-1], shares, paid)
        order.append(chosen)
        left = left.gather(1, rest)
    return (torch.cat(order, 1) % size).cpu(), torch.stack(errors, 1).cpu()


def _spread(before: Tensor, costs: Tensor, paid: float) -> list[Tensor]:
    """Return the cumulative costs after each unit of a step; the step's whole cost is divided in proportion to the cost of each alone."""
    shares = costs / costs.sum().clamp_min(1e-300) * max(paid, 0.0)
    return list((before[:, None] + shares.cumsum(1)).unbind(1))


def optimal_brain_surgeon(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """Score units by the error of their readers' outputs after the best re-fit, weighted by the curvature of the loss.

    Units are removed step by step, those of least error first. Axes that no weight matrix reads (qk) get their diagonal Fisher score,
    which is on the same scale. Moments that exceed `evidence.memory` (0: a share of what is free) are accumulated in several passes.
    """
    known = matrices(evidence.analysis.program, evidence.analysis.flow)
    read = {units: _readers(evidence, known, units) for units in asked}
    limit = int(agreed(evidence.memory or moments_limit(evidence.analysis.program)))
    found: dict[Units, Worth] = {}
    gates = GateObserver(evidence.analysis, [units for units in asked if not read[units]])
    waiting: list[Observer] = [gates] if gates.parameters else []
    reading = [units for units in asked if read[units]]
    sizes = {units: sum(moment_bytes(m, narrow=True) for m, _ in read[units]) for units in reading}
    grouped = [reading] if evidence.in_segments else pack_by_bytes(reading, sizes.__getitem__, limit)
    for group in grouped or [[]]:
        meter = _Elimination(evidence, {units: read[units] for units in group})
        if waiting or group:
            evidence.see([meter, *waiting])
        waiting = []
        found |= meter.found
    found |= {units: additive(units, gates.second[units]) for units in gates.asked}
    return {units: found[units] for units in asked}


class _Elimination(MomentObserver):
    """Observer that scores units as soon as the moments of all matrices that read them are complete, and lets go of these."""

    def __init__(self, evidence: Evidence, read: Mapping[Units, ReaderColumns]) -> None:
        super().__init__(
            list({m.node.name: m for found in read.values() for m, _ in found}.values()), narrow=True
        )
        self.evidence, self.read = evidence, dict(read)
        self.found: dict[Units, Worth] = {}

    def done(self, left: frozenset[str]) -> None:
        """Score the units none of whose matrices is left."""
        ready = [
            units for units, found in self.read.items() if left.isdisjoint(m.node.name for m, _ in found)
        ]
        for units in ready:
            self.found[units] = _eliminated(self.evidence, units, self.read.pop(units), self.moments)
        self._let_go()

    def _let_go(self) -> None:
        """Let go of matrices that no units wait for."""
        needed = {m.node.name for found in self.read.values() for m, _ in found}
        self.moments = {name: self.moments[name] for name in self.moments if name in needed}
        self.matrices = [matrix for matrix in self.matrices if matrix.node.name in needed]

    def saved(self) -> dict[str, Tensor]:
        """Return the results so far, and the moments of matrices whose units wait for others."""
        found = {
            f"{part} {units.axis.name}": getattr(worth, part)
            for units, worth in self.found.items()
            for part in ("order", "errors")
        }
        begun = {name: own for name, own in self.moments.items() if bool(own.rows)}
        return found | {
            f"{i} {name}": value for name, own in begun.items() for i, value in enumerate(own.sums())
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take in what `saved` returned."""
        for units in [units for units in self.read if f"order {units.axis.name}" in saved]:
            del self.read[units]
            self.found[units] = Worth(*(saved[f"{part} {units.axis.name}"] for part in ("order", "errors")))
        self._let_go()
        for name in [name for name in self.moments if f"0 {name}" in saved]:
            rows, *sums = (saved[f"{i} {name}"] for i in range(4))
            self.moments[name] = Moments(True, (rows, *map(summed_there, sums)))


def _readers(evidence: Evidence, known: dict[str, Matrix], units: Units) -> ReaderColumns:
    """Return the matrices that sum over the units, with the columns of each unit [count, n]."""
    found: ReaderColumns = []
    for contraction in evidence.analysis.flow.contractions:
        matrix = known.get(contraction.node.name)
        places = units.along(contraction.dim)
        if matrix is not None and bool((places >= 0).any()):
            spread = matrix.columns(places)
            columns = torch.sort(spread, stable=True).indices[int((spread < 0).sum()) :]
            found.append((matrix, columns.reshape(units.count, -1)))
    return found


def _eliminated(evidence: Evidence, units: Units, read: ReaderColumns, moments: dict[str, Moments]) -> Worth:
    readers: list[Reader] = []
    for matrix, columns in read:
        weight = attribute(evidence.analysis.program.graph_module, matrix.weight)
        readers.append(reader(matrix, on_device(weight).detach(), moments[matrix.node.name], columns))
        let_go(weight)
    return Worth(*elimination_order(readers, units.groups, units.axis.size))
