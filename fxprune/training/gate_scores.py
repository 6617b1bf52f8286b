"""Gate scores, accumulated during training: one class per score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from fxprune.gates import Gate

Tables: TypeAlias = dict[Gate, Tensor]
"""A number for each unit of each gate, in the shape of the gate."""


@dataclass(frozen=True, eq=False)
class StepInputs:
    """Inputs of one step: the scores so far, the gates' gradients, the open gates, the progress from 0 to 1, a score's own `slots`."""

    scores: Tables
    slopes: Mapping[Gate, Tensor]
    open: Mapping[Gate, Tensor]
    progress: float = 0.0
    slots: Mapping[str, Tables] = field(default_factory=dict)


class GateScore(Protocol):
    """Protocol of a score of units. `slots` are its further state, by name: a number for each unit (True), or one per gate (False)."""

    slots: ClassVar[Mapping[str, bool]]
    dtype: ClassVar[torch.dtype]

    def update(self, step: StepInputs) -> None:
        """Update the scores in place from one step."""


@dataclass
class Taylor:
    """Moving average of the estimated change of the loss if a unit closed: |gradient of its gate| (GRAIN, arXiv 2212.07634).

    The absolute value is taken after the sum over the unit and the batch. `beta` is the share of the average that stays in each step.
    `alpha` (by gate, for gates within an outer axis) is structure regularisation: new values are multiplied by tanh(D / alpha), where D is
    the share of an outer unit's gates that is open, so that small outer units empty first.
    """

    slots: ClassVar[Mapping[str, bool]] = {}
    dtype: ClassVar[torch.dtype] = torch.float64

    beta: float = 0.998
    alpha: Mapping[Gate, float] = field(default_factory=dict)

    def update(self, step: StepInputs) -> None:
        """Update the averages; a step with a gradient that is not finite is skipped, for all gates."""
        if not finite(step):
            return
        for gate, slope in step.slopes.items():
            size = slope.abs()
            if gate in self.alpha:
                density = step.open[gate].to(size.dtype).mean(-1, keepdim=True)
                size = size * torch.tanh(density / self.alpha[gate])
            step.scores[gate].mul_(self.beta).add_(size, alpha=1 - self.beta)


@dataclass
class Random:
    """Random scores, the same in every step: the baseline for other scores."""

    slots: ClassVar[Mapping[str, bool]] = {}
    dtype: ClassVar[torch.dtype] = torch.float64

    seed: int = 0

    def update(self, step: StepInputs) -> None:
        """Set the scores to the random numbers of the seed."""
        random = torch.Generator().manual_seed(self.seed)
        for score in step.scores.values():
            score.copy_(torch.rand(score.shape, generator=random, dtype=score.dtype))


@dataclass
class Movement:
    """Learned scores, by a straight-through estimator: each gets its gate's gradient (movement pruning, arXiv 2005.07683, 2109.04838).

    Adam at `rate` (linear decay to 0) minimises the loss plus `pull(progress)` times the mean of sigmoid(score) over each gate's units,
    weighted by `weight`: the second term lowers all scores, the loss raises those of useful units. All start at 0.
    """

    slots: ClassVar[Mapping[str, bool]] = {"first": True, "second": True, "steps": False}
    dtype: ClassVar[torch.dtype] = torch.float32

    rate: float = 1e-2
    pull: Callable[[float], float] = lambda progress: 0.0
    weight: Mapping[Gate, float] = field(default_factory=dict)

    def update(self, step: StepInputs) -> None:
        """Make one step of Adam; a step with a gradient that is not finite is skipped, for all gates."""
        if not finite(step):
            return
        rate = self.rate * (1 - step.progress)
        for gate, slope in step.slopes.items():
            state = tuple(step.slots[name][gate] for name in self.slots)
            adam(step.scores[gate], slope + self._pulled(gate, step), state, rate)

    def _pulled(self, gate: Gate, step: StepInputs) -> Tensor | float:
        """Return the gradient of the regulariser that lowers scores."""
        strength = self.pull(step.progress) * self.weight.get(gate, 1.0)
        if not strength:
            return 0.0
        share = step.scores[gate].sigmoid()
        return share * (1 - share) * (strength / share.numel())


def adam(score: Tensor, slope: Tensor, state: tuple[Tensor, ...], rate: float) -> None:
    """Make a step of Adam in place, with its usual constants (arXiv 1412.6980); `state` is (first moment, second moment, steps)."""
    first, second, steps = state
    steps += 1
    first.lerp_(slope, 0.1)
    second.mul_(0.999).addcmul_(slope, slope, value=0.001)
    count = float(steps)
    size = second.sqrt().div_(math.sqrt(1 - 0.999**count)).add_(1e-8)
    score.addcdiv_(first, size, value=-rate / (1 - 0.9**count))


def finite(step: StepInputs) -> bool:
    """Return whether all gradients are finite."""
    return all(bool(slope.isfinite().all()) for slope in step.slopes.values())
