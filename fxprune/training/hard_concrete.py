"""Hard concrete gates: stochastic values in [0, 1] that are often exactly 0 or 1, with an expected size that a Lagrangian holds (FLOP).

A unit's gate in training is z = clamp(1.2 s − 0.1, 0, 1) with s = sigmoid((log u − log(1 − u) + a) / β) and u uniform (arXiv 1712.01312;
β = 1 as in FLOP, arXiv 1910.04732). It is not 0 with probability sigmoid(a + β log 11), which makes the expected size a smooth function
of a. The loss gets λ₁ (s − t) + λ₂ (s − t)², s the expected sparsity and t its target, and the multipliers go up while a goes down.
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
from fxprune.training.gate_budgets import Standing
from fxprune.training.gate_scores import Felt, Tables, adam, finite

LOW, HIGH = -0.1, 1.1
"""What s is stretched to before it is cut off at 0 and 1."""

SOFT = 0.8
"""Of a, in the values that are deployed: the authors' "empirically validated magic number"."""

EDGE = 1e-6
"""How far u stays from 0 and 1."""

TINY = 1e-9
"""So that the line has an end where the warm-up lasts to the end of the run."""

FAR = 50.0
"""An `a` of this size is 0 or 1 for good."""

HOLD = 0.5
"""Of the time after the warm-up: from then on the target is approached step by step, whatever the multipliers have reached."""


def probability(score: Tensor, beta: float) -> Tensor:
    """That a gate is not 0."""
    return (score - beta * math.log(-LOW / HIGH)).sigmoid()


def sample_gates(score: Tensor, noise: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(the gates of these uniform numbers, their slopes by the score)."""
    share = ((noise.logit() + score) / beta).sigmoid()
    wide = share * (HIGH - LOW) + LOW
    slope = share * (1 - share) * ((HIGH - LOW) / beta)
    return wide.clamp(0, 1), slope * ((wide > 0) & (wide < 1))


def deployed(score: Tensor, beta: float) -> Tensor:
    """What gates are after training: as many are 0 as can be expected, the others soft."""
    zeros = round(score.numel() - float(probability(score, beta).sum()))
    value = (SOFT * score / beta).sigmoid()
    value.view(-1)[score.flatten().sort(stable=True).indices[:zeros]] = 0
    return value


@dataclass(eq=False)
class HardConcrete:
    """A score and a budget in one, for `Pruner`: what gates are is drawn anew in each step, from `a`, which Adam moves at `rate`.

    `costs` are the parameters that leave with each unit. The expected sparsity follows a line from 0 to `target` until `warmup`.

    Multipliers grow by `rate` a step at most, so that those of a short run, or of a steep loss, end before they hold the target (the
    authors discard what misses it by more than 0.02). In the second half of what follows the warm-up, all `a` move together so that the
    expected sparsity goes from where it is to the target in a line; that part is not the paper's.
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
    dropped: float = 0.05  #: the probability, roughly, with which a gate is small at first
    beta: float = 1.0
    seed: int = 0
    _scores: Tables = field(default_factory=dict, repr=False)
    _noise: Tables = field(default_factory=dict, repr=False)

    def bind(self, scores: Tables, slots: Mapping[str, Tables]) -> None:
        """Remember where things are kept, and begin where nothing is there yet."""
        self._scores, self._noise = scores, slots["noise"]
        random = torch.Generator().manual_seed(self.seed)
        for gate, score in scores.items():
            if not float(slots["steps"][gate]):
                first = math.log((1 - self.dropped) / self.dropped)
                score.copy_(first + 0.01 * torch.randn(score.shape, generator=random))

    def sparsity(self, scores: Tables) -> float:
        """The share of the cost that can be expected to leave."""
        left = sum(float((self._cost(g, s) * probability(s, self.beta)).sum()) for g, s in scores.items())
        return 1 - left / self._total

    def update(self, felt: Felt) -> None:
        """A step for `a` and for the multipliers, and new numbers; gradients that are not finite skip it."""
        learns = finite(felt)
        if learns:
            self._learn(felt)
        self._hold(felt)
        if learns:
            for gate in felt.scores:
                self._draw(gate, felt.slots["noise"][gate], int(felt.slots["steps"][gate]))

    def _learn(self, felt: Felt) -> None:
        """A step of Adam down for `a`, and up for the multipliers."""
        gap = self.sparsity(felt.scores) - self.target * min(1.0, felt.progress / self.warmup)
        for gate, score in felt.scores.items():
            state = {name: table[gate] for name, table in felt.slots.items()}
            strength = float(state["line"]) + 2 * float(state["square"]) * gap
            slope = self._slope(gate, score, state["noise"], felt.slopes.get(gate), strength)
            before = state["steps"].clone()
            adam(score, slope, (state["first"], state["second"], state["steps"]), self.rate)
            for name, up in (("line", gap), ("square", gap * gap)):
                own = before.clone()
                moved = torch.full_like(state[name], -up)
                adam(state[name], moved, (state[f"{name}_first"], state[f"{name}_second"], own), self.rate)

    def _slope(
        self, gate: Gate, score: Tensor, noise: Tensor, felt: Tensor | None, strength: float
    ) -> Tensor:
        """Of the whole loss by `a`; before anything was drawn, of the Lagrangian alone."""
        open_ = probability(score, self.beta)
        held: Tensor = -strength * self._cost(gate, score) / self._total * open_ * (1 - open_)
        is_drawn = bool((noise > 0).all())
        return (
            held + felt * sample_gates(score, noise, self.beta)[1] if is_drawn and felt is not None else held
        )

    def _hold(self, felt: Felt) -> None:
        """Towards the end, move all `a` together, so that the expected sparsity goes to the target in a line."""
        since = self.warmup + HOLD * (1 - self.warmup)
        if felt.progress < since:
            return
        held = next(iter(felt.slots["held"].values()))
        if not float(held):
            held.fill_(self.sparsity(felt.scores))
        gone = (felt.progress - since + TINY) / (1 - since + TINY)
        wanted = float(held) + (self.target - float(held)) * min(1.0, gone)
        scores = torch.cat([score.flatten() for score in felt.scores.values()]).double().cpu()
        costs = torch.cat([self.costs[gate].flatten() for gate in felt.scores]).double().cpu()

        def beyond(down: float) -> float:
            return 1 - float((costs * probability(scores - down, self.beta)).sum() / costs.sum()) - wanted

        most = float(scores.abs().max()) + FAR
        if beyond(-most) < 0 < beyond(most):
            down = brentq(beyond, -most, most, xtol=1e-6)
            for score in felt.scores.values():
                score.sub_(down)

    def _draw(self, gate: Gate, noise: Tensor, step: int) -> None:
        """Uniform numbers that only the seed, the gate and the step decide: all processes, and a run that is resumed, draw the same."""
        place = list(self._noise).index(gate)
        random = torch.Generator().manual_seed(hash((self.seed, step, place)) % 2**63)
        noise.copy_(torch.rand(noise.shape, generator=random) * (1 - 2 * EDGE) + EDGE)

    def __call__(self, standing: Standing, progress: float) -> dict[Gate, Tensor]:
        """The gates that were drawn."""
        return {
            gate: sample_gates(score, self._noise[gate], self.beta)[0]
            for gate, score in standing.scores.items()
        }

    def settled(self) -> dict[Gate, Tensor]:
        """The gates that are deployed: no chance in them."""
        return {gate: deployed(score, self.beta) for gate, score in self._scores.items()}

    def _cost(self, gate: Gate, like: Tensor) -> Tensor:
        return self.costs[gate].to(like)

    @cached_property
    def _total(self) -> float:
        return sum(float(cost.sum()) for cost in self.costs.values())
