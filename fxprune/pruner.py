"""Pruner: closes gates while a gated module trains.

Its parts are apart: how a unit's worth is known, what a unit costs, and how much is left when.

In each step, after the backward pass and before the optimizer's step, scores take in what the gates felt, and the least worthy units close
until the open ones cost what the schedule allows. Closed units never open again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fxprune.analysis import analyze
from fxprune.closing import closing
from fxprune.errors import SelectionError
from fxprune.gates import Gate, Gated, tensors_of, unwrapped
from fxprune.program import attribute, set_attribute
from fxprune.units import Units

Schedule = Callable[[float], float]


def unit_costs(gated: Gated) -> dict[Gate, Tensor]:
    """How many parameters leave with each unit, float64 in the shape of its gates; SelectionError for gates of regions and blocks."""
    analysis = analyze(gated.base)
    nodes = gated.base.reads()
    costs = {}
    for gate in gated.gates:
        if gate.kind != "units":
            raise SelectionError(
                f"gate {gate.name}: only gates of units have a cost by unit, this one is of {gate.kind}"
            )
        axis = analysis.axis(gate.of)
        units = Units(axis, analysis.axis(gate.within) if gate.within else None)
        total = torch.zeros(units.count, dtype=torch.float64)
        for name in dict.fromkeys(member.name for member in axis.members if member.learned):
            weight = attribute(gated.base.graph, name)
            found = units.total(torch.ones(weight.shape), analysis.flow.dims[nodes[name]])
            total += found if found is not None else 0.0
        costs[gate] = total.reshape(gated.program.tensors()[gate.name].shape)
    return costs


@dataclass
class Taylor:
    """Moving averages of how much the loss would change if a unit closed: |gradient of its gate| (GRAIN, arXiv 2212.07634).

    The absolute value comes after the sum over the unit and the batch. `beta` is the share of the average that stays in each step. `alpha`
    (by gate, for gates within an outer axis) is structure regularisation: what comes in is multiplied by tanh(D / alpha), where D is the
    share of an outer unit's gates that is open, so that small ones empty first.
    """

    beta: float = 0.998
    alpha: Mapping[Gate, float] = field(default_factory=dict)

    def update(
        self, scores: dict[Gate, Tensor], slopes: Mapping[Gate, Tensor], open_: Mapping[Gate, Tensor]
    ) -> None:
        """One step; gates whose gradients are not finite skip it."""
        if not all(bool(slope.isfinite().all()) for slope in slopes.values()):
            return
        for gate, slope in slopes.items():
            felt = slope.abs()
            if gate in self.alpha:
                density = open_[gate].to(felt.dtype).mean(-1, keepdim=True)
                felt = felt * torch.tanh(density / self.alpha[gate])
            scores[gate].mul_(self.beta).add_(felt, alpha=1 - self.beta)


@dataclass
class Random:
    """Numbers that say nothing, drawn once by a seed: what a score has to beat."""

    seed: int = 0

    def update(
        self, scores: dict[Gate, Tensor], slopes: Mapping[Gate, Tensor], open_: Mapping[Gate, Tensor]
    ) -> None:
        """The same numbers in each step."""
        random = torch.Generator().manual_seed(self.seed)
        for score in scores.values():
            score.copy_(torch.rand(score.shape, generator=random, dtype=score.dtype))


class Score(Protocol):
    """How a unit's worth is known: one row of what `Pruner` can sort by."""

    def update(
        self, scores: dict[Gate, Tensor], slopes: Mapping[Gate, Tensor], open_: Mapping[Gate, Tensor]
    ) -> None:
        """Take in one step: slopes are the gradients of the gates, open_ says which are open."""


class Pruner:
    """Watches the gates of a module that trains, and closes them.

    The module may be wrapped by torch.compile, DistributedDataParallel or Accelerate. Gradients of gates are taken off in the backward
    pass, so that clipping and optimizers never see them; over processes they are averaged, so that all close the same units. What is open
    and what was felt live in the module, as gates and as buffers: whatever saves and loads the module saves and loads them.
    With `per_cost`, units are ranked by score for each parameter that they cost, which is fairer where some are far larger than others.
    """

    def __init__(
        self,
        gated: Gated,
        module: nn.Module,
        schedule: Schedule,
        score: Score | None = None,
        per_cost: bool = False,
    ) -> None:
        self.per_cost = per_cost
        self.gated, self.schedule, self.score = gated, schedule, score or Taylor()
        self.module, named = unwrapped(module), tensors_of(module)
        self.parameters = {gate: named[gate.name] for gate in gated.gates}
        self.costs = unit_costs(gated)
        self.scores = {gate: self._score(gate) for gate in gated.gates}
        self.listening = True
        self._felt: dict[Gate, Tensor] = {}
        self._closing = closing(gated)
        for gate, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(lambda p, own=gate: self._take(own, p))

    def _score(self, gate: Gate) -> Tensor:
        """The buffer that holds the scores of a gate, made where there is none."""
        name = f"gate_scores.{gate.name.partition('.')[2]}"
        if name not in dict(self.module.named_buffers()):
            set_attribute(self.module, name, torch.zeros_like(self.parameters[gate], dtype=torch.float64))
        held: Tensor = attribute(self.module, name)
        return held

    @property
    def open(self) -> dict[Gate, Tensor]:
        """Which units are open, booleans."""
        return {gate: parameter.detach() > 0.5 for gate, parameter in self.parameters.items()}

    @property
    def density(self) -> float:
        """What the open units cost, as a share of all."""
        total = sum(float(cost.sum()) for cost in self.costs.values())
        return sum(float(self.costs[gate][open_.cpu()].sum()) for gate, open_ in self.open.items()) / total

    def observe(self, loss: Tensor) -> None:
        """Let scores feel this loss only: what later backward passes bring to the gates is dropped until the step (gradient separation).

        The graph stays for the backward pass that trains.
        """
        found = torch.autograd.grad(
            loss, list(self.parameters.values()), retain_graph=True, allow_unused=True
        )
        for gate, slope in zip(self.parameters, found, strict=True):
            if slope is not None:
                self._add(gate, slope)
        self.listening = False

    def step(self, progress: float) -> None:
        """After the backward pass, before the optimizer's step; progress runs from 0 to 1."""
        none = {gate: torch.zeros_like(score) for gate, score in self.scores.items()}
        slopes = _averaged(none | self._felt)
        self._felt, self.listening = {}, True
        open_ = self.open
        self.score.update(self.scores, slopes, open_)
        closed = self._closing(self._closed(open_, self.schedule(progress)))
        with torch.no_grad():
            for gate, parameter in self.parameters.items():
                parameter.copy_(closed[gate])

    def _take(self, gate: Gate, parameter: Tensor) -> None:
        if self.listening and parameter.grad is not None:
            self._add(gate, parameter.grad)
        parameter.grad = None

    def _add(self, gate: Gate, slope: Tensor) -> None:
        wide = slope.detach().to(torch.float64)
        self._felt[gate] = self._felt[gate] + wide if gate in self._felt else wide

    def _closed(self, open_: Mapping[Gate, Tensor], share: float) -> dict[Gate, Tensor]:
        """Close the least worthy units until the others cost at most a share of all; equal ones in their order."""
        flat = torch.cat([table.flatten() for table in open_.values()])
        costs = torch.cat([self.costs[gate].flatten() for gate in open_]).to(flat.device)
        scores = torch.cat([self.scores[gate].flatten() for gate in open_])
        ranked = _least_first(scores / costs.clamp(min=1) if self.per_cost else scores, flat)
        left = costs[flat].sum() - costs[ranked].cumsum(0) + costs[ranked]
        flat[ranked[left > share * float(costs.sum()) * (1 + 1e-9)]] = False
        parts = flat.split([table.numel() for table in open_.values()])
        return {gate: part.reshape(open_[gate].shape) for gate, part in zip(open_, parts, strict=True)}


def _least_first(scores: Tensor, open_: Tensor) -> Tensor:
    """The open units' places in all gates laid end to end, by rising score."""
    here = open_.nonzero().flatten()
    return here[scores[here].sort(stable=True).indices]


def _averaged(slopes: dict[Gate, Tensor]) -> dict[Gate, Tensor]:
    """The mean over all processes, where there are several."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return slopes
    flat = torch.cat([slope.flatten() for slope in slopes.values()])
    distributed.all_reduce(flat)
    parts: Sequence[Tensor] = (flat / distributed.get_world_size()).split(
        [s.numel() for s in slopes.values()]
    )
    return {
        gate: part.reshape(slope.shape) for (gate, slope), part in zip(slopes.items(), parts, strict=True)
    }
