"""Activation score: norm of a unit's activations times the norm of the weights that read it (Wanda)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fxprune.analysis import Units
from fxprune.calibration.run import BatchRecord, Observer
from fxprune.rules import Contraction, Flow
from fxprune.scores.base import Evidence, Worth, additive
from fxprune.storage import let_go


class NormObserver(Observer):
    """Observer of operand norms, unit by unit: for every contraction over an axis, the sum of squares of each operand (Wanda-like)."""

    def __init__(self, flow: Flow, asked: Sequence[Units]) -> None:
        self.flow = flow
        self.asked = {units: [c for c in flow.contractions if units.lies(c.dim)] for units in asked}
        operands = {node for found in self.asked.values() for c in found for node in c.operands}
        self.values = frozenset(node.name for node in operands)
        self.squares: dict[tuple[Units, int, int], Tensor] = {}

    def take(self, seen: BatchRecord) -> None:
        """Add the squares of one batch."""
        for units, found in self.asked.items():
            here = [(i, each) for i, each in enumerate(found) if each.node.name in seen.nodes]
            for i, contraction in here:
                for j, node in enumerate(contraction.operands):
                    self._add((units, i, j), contraction, seen.values[node.name])

    def sums(self, left: frozenset[str]) -> Iterator[Tensor]:
        """Yield the sums over batches at the end; squares of weights are the same in all processes."""
        for units, found in self.asked.items() if not left else ():
            for i, contraction in enumerate(found):
                for j, node in enumerate(contraction.operands):
                    if node in self.flow.varies and (units, i, j) in self.squares:
                        yield self.squares[units, i, j]

    def _add(self, key: tuple[Units, int, int], contraction: Contraction, value: Tensor) -> None:
        units, _, place = key
        node = contraction.operands[place]
        if node not in self.flow.varies and key in self.squares:
            return
        squares = units.total(value.detach().abs().square(), self.flow.dims[node])
        let_go(value)
        if squares is not None:
            self.squares[key] = self.squares.get(key, torch.zeros_like(squares)) + squares

    def worth(self, units: Units) -> Tensor:
        """Return the score of each unit, float64 [count]: the product of the operands' norms, summed over contractions."""
        result = torch.zeros(units.count, dtype=torch.float64)
        for i, contraction in enumerate(self.asked[units]):
            norms = [self.squares.get((units, i, j)) for j in range(len(contraction.operands))]
            present = [norm.sqrt() for norm in norms if norm is not None]
            result += torch.stack(present).prod(0) if present else 0.0
        return result


def activation(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """Score units by the norm of their activations times the norm of the weights that read them."""
    meter = NormObserver(evidence.analysis.flow, asked)
    evidence.see([meter])
    return {units: additive(units, meter.worth(units)) for units in asked}
