"""Hard concrete gates: stochastic values in [0, 1], often exactly 0 or 1; a Lagrangian holds the expected sparsity at a target (FLOP).

A unit's gate in training is z = clamp(1.2 s − 0.1, 0, 1) with s = sigmoid((log u − log(1 − u) + a) / β) and u uniform (arXiv 1712.01312;
β = 1 as in FLOP, arXiv 1910.04732). It is not 0 with probability sigmoid(a + β log 11), which makes the expected size a smooth function
of a. The loss gets λ₁ (S − t) + λ₂ (S − t)², with S the expected sparsity and t its target; a descends and the multipliers ascend on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from scipy.optimize import brentq
from torch import Tensor

from fxprune.gates import Gate
from fxprune.training.gate_budgets import GateState
from fxprune.training.gate_scores import StepInputs, Tables, adam, finite

LOW, HIGH = -0.1, 1.1
"""Interval that s is stretched to before it is clamped to [0, 1]."""

SOFT = 0.8
"""Factor of a in the deployed values: the authors' "empirically validated magic number"."""

EDGE = 1e-6
"""Least distance of u from 0 and 1."""

TINY = 1e-9
"""Added to the length of the final ramp, which is 0 where the warm-up lasts to the end of the run."""

FAR = 50.0
"""Shift beyond the largest |a| after which every gate is practically always 0, or never."""

HOLD = 0.5
"""Share of the time after the warm-up; after it the target is approached linearly, whatever the multipliers have reached."""


def probability(score: Tensor, beta: float) -> Tensor:
    """Return the probability that a gate is not 0."""
    return (score - beta * math.log(-LOW / HIGH)).sigmoid()


def sample_gates(score: Tensor, noise: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return (the gates for uniform numbers `noise`, their derivatives by the score)."""
    share = ((noise.logit() + score) / beta).sigmoid()
    wide = share * (HIGH - LOW) + LOW
    slope = share * (1 - share) * ((HIGH - LOW) / beta)
    return wide.clamp(0, 1), slope * ((wide > 0) & (wide < 1))


def deployed(score: Tensor, beta: float) -> Tensor:
    """Return the gates after training: as many are 0 as expected, those of lowest score; the others lie between 0 and 1."""
    zeros = round(score.numel() - float(probability(score, beta).sum()))
    value = (SOFT * score / beta).sigmoid()
    value.view(-1)[score.flatten().sort(stable=True).indices[:zeros]] = 0
    return value


@dataclass(eq=False)
class HardConcrete:
    """Score and budget in one, for `Pruner`: gates are sampled in each step from the scores `a`, which Adam moves at `rate`.

    `costs` are the numbers of parameters that leave with each unit. The target of the expected sparsity rises linearly from 0 to `target`
    until the progress `warmup`.

    Multipliers grow by about `rate` per step at most, so that in a short run, or with a steep loss, they may not reach the values that hold
    the target (the authors discard runs that miss it by more than 0.02). Therefore, in the second half of the time after the warm-up, all
    `a` are shifted together so that the expected sparsity goes linearly from its value to the target; this part is not in the paper.
    """

    slots: ClassVar[Mapping[str, bool]] = {
        "noise": True, "first": True, "second": True, "steps": False,
        "line": False, "line_first": False, "line_second": False,
        "square": False, "square_first": False, "square_second": False, "held": False,
    }  # fmt: skip
    dtype: ClassVar[torch.dtype] = torch.float32

    costs: Tables
    target: float
    warmup: float = 0.5
    rate: float = 5e-2
    dropped: float = 0.05  #: the approximate probability that a gate is small at first
    beta: float = 1.0
    seed: int = 0
    _scores: Tables = field(default_factory=dict, repr=False)
    _noise: Tables = field(default_factory=dict, repr=False)

    def bind(self, scores: Tables, slots: Mapping[str, Tables]) -> None:
        """Keep references to the pruner's scores and slots, and initialise the scores where no step was made yet."""
        self._scores, self._noise = scores, slots["noise"]
        random = torch.Generator().manual_seed(self.seed)
        for gate, score in scores.items():
            if not float(slots["steps"][gate]):
                first = math.log((1 - self.dropped) / self.dropped)
                score.copy_(first + 0.01 * torch.randn(score.shape, generator=random))

    def sparsity(self, scores: Tables) -> float:
        """Return the expected sparsity: the expected share of the cost that is closed."""
        left = sum(float((self._cost(g, s) * probability(s, self.beta)).sum()) for g, s in scores.items())
        return 1 - left / self._total

    def update(self, step: StepInputs) -> None:
        """Make a step for `a` and the multipliers, and draw new noise; where a gradient is not finite, only apply the final ramp."""
        learns = finite(step)
        if learns:
            self._learn(step)
        self._hold(step)
        if learns:
            for gate in step.scores:
                self._draw(gate, step.slots["noise"][gate], int(step.slots["steps"][gate]))

    def _learn(self, step: StepInputs) -> None:
        """Make a step of Adam, down for `a` and up for the multipliers."""
        gap = self.sparsity(step.scores) - self.target * min(1.0, step.progress / self.warmup)
        for gate, score in step.scores.items():
            state = {name: table[gate] for name, table in step.slots.items()}
            strength = float(state["line"]) + 2 * float(state["square"]) * gap
            slope = self._slope(gate, score, state["noise"], step.slopes.get(gate), strength)
            before = state["steps"].clone()
            adam(score, slope, (state["first"], state["second"], state["steps"]), self.rate)
            for name, up in (("line", gap), ("square", gap * gap)):
                own = before.clone()
                moved = torch.full_like(state[name], -up)
                adam(state[name], moved, (state[f"{name}_first"], state[f"{name}_second"], own), self.rate)

    def _slope(
        self, gate: Gate, score: Tensor, noise: Tensor, gradient: Tensor | None, strength: float
    ) -> Tensor:
        """Return the gradient of the whole loss by `a`; before the first noise was drawn, of the Lagrangian alone."""
        open_ = probability(score, self.beta)
        held: Tensor = -strength * self._cost(gate, score) / self._total * open_ * (1 - open_)
        if gradient is None or not bool((noise > 0).all()):
            return held
        return held + gradient * sample_gates(score, noise, self.beta)[1]

    def _hold(self, step: StepInputs) -> None:
        """Towards the end, shift all `a` together, so that the expected sparsity goes linearly to the target."""
        since = self.warmup + HOLD * (1 - self.warmup)
        if step.progress < since:
            return
        held = next(iter(step.slots["held"].values()))
        if not float(held):
            held.fill_(self.sparsity(step.scores))
        gone = (step.progress - since + TINY) / (1 - since + TINY)
        wanted = float(held) + (self.target - float(held)) * min(1.0, gone)
        scores = torch.cat([score.flatten() for score in step.scores.values()]).double().cpu()
        costs = torch.cat([self.costs[gate].flatten() for gate in step.scores]).double().cpu()

        def beyond(down: float) -> float:
            return 1 - float((costs * probability(scores - down, self.beta)).sum() / costs.sum()) - wanted

        most = float(scores.abs().max()) + FAR
        if beyond(-most) < 0 < beyond(most):
            down = brentq(beyond, -most, most, xtol=1e-6)
            for score in step.scores.values():
                score.sub_(down)

    def _draw(self, gate: Gate, noise: Tensor, step: int) -> None:
        """Draw uniform numbers that depend on the seed, the gate and the step alone: all processes, and a resumed run, draw the same."""
        place = list(self._noise).index(gate)
        random = torch.Generator().manual_seed(hash((self.seed, step, place)) % 2**63)
        noise.copy_(torch.rand(noise.shape, generator=random) * (1 - 2 * EDGE) + EDGE)

    def __call__(self, standing: GateState, progress: float) -> dict[Gate, Tensor]:
        """Return the sampled gates."""
        scores = standing.scores.items()
        return {gate: sample_gates(score, self._noise[gate], self.beta)[0] for gate, score in scores}

    def settled(self) -> dict[Gate, Tensor]:
        """Return the deployed gates, which are not random."""
        return {gate: deployed(score, self.beta) for gate, score in self._scores.items()}

    def _cost(self, gate: Gate, like: Tensor) -> Tensor:
        return self.costs[gate].to(like)

    @cached_property
    def _total(self) -> float:
        return sum(float(cost.sum()) for cost in self.costs.values())
