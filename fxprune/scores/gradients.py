"""Gradient scores (Taylor, Fisher): the change of the loss when a gate on a unit closes, accumulated over calibration batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fxprune.analysis import Analysis, Units
from fxprune.analysis.axes import Member
from fxprune.calibration.run import BatchRecord, Observer
from fxprune.ir import attribute
from fxprune.scores.base import Evidence, Worth, additive
from fxprune.storage import let_go
from fxprune.storage.devices import in_float64, on_device


class GateObserver(Observer):
    """Observer of the first-order change of the loss when a gate on a unit closes: weight · gradient, summed over the unit's readers.

    `first` adds up its magnitude (Taylor, arXiv 1611.06440: the absolute value comes after the sum), `second` its square (diagonal Fisher
    of masks, arXiv 2204.09656), once per batch and direction; both float64 [count].
    """

    def __init__(self, analysis: Analysis, asked: Sequence[Units]) -> None:
        self.program, self.flow = analysis.program, analysis.flow
        self.nodes_of = self.program.reads()
        self.asked = {units: _readers(units) for units in asked}
        self.parameters = frozenset(member.name for found in self.asked.values() for member in found)
        self.first = {units: torch.zeros(units.count, dtype=torch.float64) for units in asked}
        self.second = {units: torch.zeros(units.count, dtype=torch.float64) for units in asked}
        self._begun: dict[tuple[Units, int, int], Tensor] = {}

    def take(self, seen: BatchRecord) -> None:
        """Add the changes of one batch; of units whose readers lie in several segments, once all of them have come."""
        for draw, slopes in enumerate(seen.slopes):
            for units, members in self.asked.items():
                gate = self._begun.pop((units, seen.batch, draw), None)
                for member in members:
                    if member.name in slopes:
                        own = self._gate_gradient(units, member, slopes[member.name])
                        gate = own if gate is None else gate + own
                if gate is None:
                    continue
                if any(member.name in seen.left for member in members):
                    self._begun[units, seen.batch, draw] = gate
                    continue
                self.first[units] += gate.abs()
                self.second[units] += gate.square()

    def sums(self, left: frozenset[str]) -> Iterator[Tensor]:
        """Yield the sums of all units at the end."""
        if not left:
            yield from (*self.first.values(), *self.second.values())

    def saved(self) -> dict[str, Tensor]:
        """Return the sums, and what has come so far of units whose readers lie in several segments."""
        number = {units: i for i, units in enumerate(self.asked)}
        found = {f"first {i}": self.first[units] for units, i in number.items()}
        found |= {f"second {i}": self.second[units] for units, i in number.items()}
        begun = self._begun.items()
        return found | {f"begun {number[units]} {batch} {draw}": gate for (units, batch, draw), gate in begun}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take in what `saved` returned."""
        asked = list(self.asked)
        for name, value in saved.items():
            kind, *numbers = name.split(" ")
            place, *which = map(int, numbers)
            if kind == "begun":
                self._begun[asked[place], which[0], which[1]] = value
            else:
                (self.first if kind == "first" else self.second)[asked[place]] = value

    def _gate_gradient(self, units: Units, member: Member, slope: Tensor) -> Tensor:
        weight = on_device(attribute(self.program.graph_module, member.name)).detach()
        product = (in_float64(weight).conj() * in_float64(slope)).real
        let_go(weight)
        summed = units.total(product, self.flow.dims[self.nodes_of[member.name]])
        return summed if summed is not None else torch.zeros(units.count, dtype=torch.float64)


def _readers(units: Units) -> tuple[Member, ...]:
    """Return the members whose zeros silence a unit, one dimension per parameter; all learned members where no zeros can."""
    axis = units.axis
    named = set(axis.readers) or {member.name for member in axis.members if member.learned}
    found: dict[str, Member] = {}
    for member in axis.members:
        if member.name in named:
            found.setdefault(member.name, member)
    return tuple(found.values())


def taylor(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """Score units by the magnitude of the loss's first-order change without them (Taylor)."""
    meter = GateObserver(evidence.analysis, asked)
    evidence.see([meter])
    return {units: additive(units, meter.first[units]) for units in asked}


def fisher(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """Score units by the square of that change: the diagonal of the Fisher information of gates on the units."""
    meter = GateObserver(evidence.analysis, asked)
    evidence.see([meter])
    return {units: additive(units, meter.second[units]) for units in asked}
