"""What gates feel while a module trains, and scores that are made of it: one class for each way to know what a unit is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from fxprune.gates import Gate

Tables: TypeAlias = dict[Gate, Tensor]
"""A number for each gate's units, in the shape of the gate."""


@dataclass(frozen=True, eq=False)
class Felt:
    """One step: the scores so far, the gates' gradients, which gates are open, the progress from 0 to 1, and a score's own `slots`."""

    scores: Tables
    slopes: Mapping[Gate, Tensor]
    open: Mapping[Gate, Tensor]
    progress: float = 0.0
    slots: Mapping[str, Tables] = field(default_factory=dict)


class GateScore(Protocol):
    """How a unit's worth is known. `slots` are what it remembers besides, by name: a number for each unit (True), or one (False)."""

    slots: ClassVar[Mapping[str, bool]]
    dtype: ClassVar[torch.dtype]

    def update(self, felt: Felt) -> None:
        """Take in one step."""


@dataclass
class Taylor:
    """Moving averages of how much the loss would change if a unit closed: |gradient of its gate| (GRAIN, arXiv 2212.07634).

    The absolute value comes after the sum over the unit and the batch. `beta` is the share of the average that stays in each step. `alpha`
    (by gate, for gates within an outer axis) is structure regularisation: what comes in is multiplied by tanh(D / alpha), where D is the
    share of an outer unit's gates that is open, so that small ones empty first.
    """

    slots: ClassVar[Mapping[str, bool]] = {}
    dtype: ClassVar[torch.dtype] = torch.float64

    beta: float = 0.998
    alpha: Mapping[Gate, float] = field(default_factory=dict)

    def update(self, felt: Felt) -> None:
        """One step; gates whose gradients are not finite skip it."""
        if not finite(felt):
            return
        for gate, slope in felt.slopes.items():
            size = slope.abs()
            if gate in self.alpha:
                density = felt.open[gate].to(size.dtype).mean(-1, keepdim=True)
                size = size * torch.tanh(density / self.alpha[gate])
            felt.scores[gate].mul_(self.beta).add_(size, alpha=1 - self.beta)


@dataclass
class Random:
    """Numbers that say nothing, drawn once by a seed: what a score has to beat."""

    slots: ClassVar[Mapping[str, bool]] = {}
    dtype: ClassVar[torch.dtype] = torch.float64

    seed: int = 0

    def update(self, felt: Felt) -> None:
        """The same numbers in each step."""
        random = torch.Generator().manual_seed(self.seed)
        for score in felt.scores.values():
            score.copy_(torch.rand(score.shape, generator=random, dtype=score.dtype))


@dataclass
class Movement:
    """Scores that are learned: the gradient of a gate goes straight through to its score (movement pruning, arXiv 2005.07683, 2109.04838).

    Adam at `rate` (falling to 0 in a line) lowers the loss plus `pull(progress)` times the mean of sigmoid(score) over each gate's units,
    weighed by `weight`: it pulls scores down, and what the loss wants to keep moves up. All start at 0.
    """

    slots: ClassVar[Mapping[str, bool]] = {"first": True, "second": True, "steps": False}
    dtype: ClassVar[torch.dtype] = torch.float32

    rate: float = 1e-2
    pull: Callable[[float], float] = lambda progress: 0.0
    weight: Mapping[Gate, float] = field(default_factory=dict)

    def update(self, felt: Felt) -> None:
        """One step of Adam; gates whose gradients are not finite skip it."""
        if not finite(felt):
            return
        rate = self.rate * (1 - felt.progress)
        for gate, slope in felt.slopes.items():
            state = tuple(felt.slots[name][gate] for name in self.slots)
            adam(felt.scores[gate], slope + self._pulled(gate, felt), state, rate)

    def _pulled(self, gate: Gate, felt: Felt) -> Tensor | float:
        """The gradient of what pulls scores down."""
        strength = self.pull(felt.progress) * self.weight.get(gate, 1.0)
        if not strength:
            return 0.0
        share = felt.scores[gate].sigmoid()
        return share * (1 - share) * (strength / share.numel())


def adam(score: Tensor, slope: Tensor, state: tuple[Tensor, ...], rate: float) -> None:
    """Adam's step with its usual constants (arXiv 1412.6980)."""
    first, second, steps = state
    steps += 1
    first.lerp_(slope, 0.1)
    second.mul_(0.999).addcmul_(slope, slope, value=0.001)
    count = float(steps)
    size = second.sqrt().div_(math.sqrt(1 - 0.999**count)).add_(1e-8)
    score.addcdiv_(first, size, value=-rate / (1 - 0.9**count))


def finite(felt: Felt) -> bool:
    """Whether all gradients are."""
    return all(bool(slope.isfinite().all()) for slope in felt.slopes.values())
