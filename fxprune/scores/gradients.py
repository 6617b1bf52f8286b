"""Meters of single units: gradients of imagined gates (Taylor, Fisher), and sizes of activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.analysis.axes import Analysis, Member
from fxprune.analysis.units import Units
from fxprune.calibration.run import Seen
from fxprune.ir.program import attribute
from fxprune.rules.op import Contraction, Flow


class GateObserver:
    """What the loss feels when a gate on a unit closes, to first order: the sum over the weights that read it of weight · gradient.

    `first` adds up its magnitude (Taylor, arXiv 1611.06440: the absolute value comes after the sum), `second` its square (diagonal Fisher
    of masks, arXiv 2204.09656), both by batch.
    """

    def __init__(self, analysis: Analysis, asked: Sequence[Units]) -> None:
        self.program, self.flow = analysis.program, analysis.flow
        self.nodes_of = self.program.reads()
        self.asked = {units: _readers(units) for units in asked}
        self.values: frozenset[str] = frozenset()
        self.nodes: frozenset[str] = frozenset()
        self.parameters = frozenset(member.name for found in self.asked.values() for member in found)
        self.first = {units: torch.zeros(units.count, dtype=torch.float64) for units in asked}
        self.second = {units: torch.zeros(units.count, dtype=torch.float64) for units in asked}

    def take(self, seen: Seen) -> None:
        """One batch."""
        for slopes in seen.slopes:
            for units, members in self.asked.items():
                gate = torch.zeros(units.count, dtype=torch.float64)
                for member in members:
                    if member.name in slopes:
                        gate += self._felt(units, member, slopes[member.name])
                self.first[units] += gate.abs()
                self.second[units] += gate.square()

    def _felt(self, units: Units, member: Member, slope: Tensor) -> Tensor:
        weight = attribute(self.program.graph, member.name).detach()
        wide = torch.complex128 if weight.is_complex() else torch.float64
        product = (weight.to(wide).conj() * slope.to(wide)).real
        felt = units.total(product, self.flow.dims[self.nodes_of[member.name]])
        return felt if felt is not None else torch.zeros(units.count, dtype=torch.float64)


def _readers(units: Units) -> tuple[Member, ...]:
    """The members whose zeros silence a unit, one dimension of each parameter; all learned ones where no zeros can."""
    axis = units.axis
    named = set(axis.readers) or {member.name for member in axis.members if member.learned}
    found: dict[str, Member] = {}
    for member in axis.members:
        if member.name in named:
            found.setdefault(member.name, member)
    return tuple(found.values())


class NormObserver:
    """The size of what is summed over an axis: for every contraction the product of its operands' norms, unit by unit (Wanda-like)."""

    def __init__(self, flow: Flow, asked: Sequence[Units]) -> None:
        self.flow = flow
        self.asked = {units: [c for c in flow.contractions if units.lies(c.dim)] for units in asked}
        operands = {node for found in self.asked.values() for c in found for node in c.operands}
        self.values = frozenset(node.name for node in operands)
        self.nodes: frozenset[str] = frozenset()
        self.parameters: frozenset[str] = frozenset()
        self.squares: dict[tuple[Units, int, int], Tensor] = {}

    def take(self, seen: Seen) -> None:
        """One batch."""
        for units, found in self.asked.items():
            for i, contraction in enumerate(found):
                for j, node in enumerate(contraction.operands):
                    self._add((units, i, j), contraction, seen.values[node.name])

    def _add(self, key: tuple[Units, int, int], contraction: Contraction, value: Tensor) -> None:
        units, _, place = key
        node = contraction.operands[place]
        if node not in self.flow.varies and key in self.squares:
            return
        squares = units.total(value.detach().abs().square(), self.flow.dims[node])
        if squares is not None:
            self.squares[key] = self.squares.get(key, torch.zeros_like(squares)) + squares

    def worth(self, units: Units) -> Tensor:
        """Of each unit, float64 [count]."""
        result = torch.zeros(units.count, dtype=torch.float64)
        for i, contraction in enumerate(self.asked[units]):
            norms = [self.squares.get((units, i, j)) for j in range(len(contraction.operands))]
            present = [norm.sqrt() for norm in norms if norm is not None]
            result += torch.stack(present).prod(0) if present else 0.0
        return result
