"""Reweighted group lasso: a penalty that drives groups of weights to zero, small ones ever harder, until they can be removed without loss.

In each round `strength · Σ β_g ‖g‖²` is added to the loss; after a round, β_g = 1 / (‖g‖² + eps), without a gradient (arXiv 2009.08065;
reconstructed, as the authors published no code). β is 1 at first. The penalty on large groups is relaxed and that on small ones grows: it
reduces the number of groups, and not the size of those that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from fxprune.gates import Gate
from fxprune.training.gate_budgets import GateState
from fxprune.training.gate_scores import StepInputs

Squares: TypeAlias = Callable[[], Tensor]
"""A function that returns the current squared norms of a gate's groups, in the shape of the gate."""


@dataclass(eq=False)
class Lasso:
    """Score for `Pruner`: the squared norm of each group; `penalty` is added to the loss, until the progress `until`.

    `wide` are gates whose whole columns (all blocks of a column together) are groups as well, so that a column that every block drops can
    be removed at the producer.
    """

    slots: ClassVar[Mapping[str, bool]] = {"beta": True, "beta_wide": True, "rounds": False}
    dtype: ClassVar[torch.dtype] = torch.float32

    squares: Mapping[Gate, Squares]
    strength: float
    rounds: int = 4
    until: float = 0.5
    eps: float = 1e-6
    wide: frozenset[Gate] = frozenset()
    _inputs: StepInputs | None = field(default=None, repr=False)

    def bind(self, scores: Mapping[Gate, Tensor], slots: Mapping[str, Mapping[Gate, Tensor]]) -> None:
        """Keep references to the pruner's scores and slots, as `penalty` is called before the first step."""
        own = {name: dict(found) for name, found in slots.items()}
        self._inputs = StepInputs(dict(scores), {}, {}, 0.0, own)

    def penalty(self) -> Tensor:
        """Return the penalty to add to the loss; 0 once the rounds are over."""
        assert self._inputs is not None
        total = torch.zeros(())
        for gate, squares in self.squares.items():
            if int(self._inputs.slots["rounds"][gate]) < self.rounds:
                total = total + self._pull(gate, squares())
        return self.strength * total

    def _pull(self, gate: Gate, squares: Tensor) -> Tensor:
        assert self._inputs is not None
        first = int(self._inputs.slots["rounds"][gate]) == 0
        beta = self._inputs.slots["beta"][gate]
        pulled = (squares if first else beta * squares).sum()
        if gate in self.wide:
            columns = squares.sum(_blocks_of(gate))
            wide = self._inputs.slots["beta_wide"][gate].select(_blocks_of(gate), 0)
            pulled = pulled + (columns if first else wide * columns).sum()
        return pulled

    def update(self, step: StepInputs) -> None:
        """Set the scores to the current squared norms, and β anew at the end of a round."""
        with torch.no_grad():
            for gate, squares in self.squares.items():
                step.scores[gate].copy_(squares())
                self._refresh(gate, step)

    def _refresh(self, gate: Gate, step: StepInputs) -> None:
        done = step.slots["rounds"][gate]
        due = min(self.rounds, int(step.progress / self.until * self.rounds))
        if due <= int(done):
            return
        score = step.scores[gate]
        step.slots["beta"][gate].copy_(1 / (score + self.eps))
        columns = score.sum(_blocks_of(gate), keepdim=True) if gate.grid else score
        step.slots["beta_wide"][gate].copy_((1 / (columns + self.eps)).expand_as(score))
        done.fill_(due)


def _blocks_of(gate: Gate) -> int:
    """Return the dimension of a gate along which the blocks of one column lie: that of the weight's outputs."""
    return gate.outputs


@dataclass(frozen=True)
class OneShot:
    """Budget that closes groups once, at progress `at`: in each gate all but the largest share `density`, or those up to `threshold`.

    `threshold` (0: use `density`) is a norm. With `equal`, each block keeps equally many, so that the products of all blocks have one size.
    """

    at: float
    density: float = 0.0
    threshold: float = 0.0
    equal: bool = False

    def __call__(self, standing: GateState, progress: float) -> dict[Gate, Tensor]:
        """Return the open units: unchanged before `at` and once some are closed, else the groups chosen now."""
        if progress < self.at or any(not bool(table.all()) for table in standing.open.values()):
            return dict(standing.open)
        return {gate: self._chosen(gate, standing.scores[gate]) for gate in standing.open}

    def _chosen(self, gate: Gate, scores: Tensor) -> Tensor:
        if self.threshold:
            return scores.sqrt() > self.threshold
        if self.equal and gate.grid is not None:
            rows = scores.unbind(gate.outputs)
            return torch.stack([_largest(row, self.density) for row in rows], gate.outputs)
        return _largest(scores.flatten(), self.density).reshape(scores.shape)


def _largest(scores: Tensor, share: float) -> Tensor:
    """Return which numbers are among the largest `share`, booleans; at least one."""
    count = max(1, round(share * len(scores)))
    kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    kept[scores.sort(descending=True, stable=True).indices[:count]] = True
    return kept
