"""Gate budgets: which gates are open at each moment of training, by their scores: a share of the cost, or those above a threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fxprune.gates import Gate

Schedule: TypeAlias = Callable[[float], float]
"""A function from progress (0 to 1) to a number."""

Opened: TypeAlias = Mapping[Gate, Tensor]
"""The units that are open, booleans."""


@dataclass(frozen=True, eq=False)
class GateState:
    """State of the gates: which units are open, the score of each, and its cost in parameters."""

    open: Opened
    scores: Mapping[Gate, Tensor]
    costs: Mapping[Gate, Tensor]


class GateBudget(Protocol):
    """Protocol of a function that decides which gates are open."""

    def __call__(self, standing: GateState, progress: float) -> dict[Gate, Tensor]:
        """Return the units that are open from now on; for stochastic gates, their values."""


@runtime_checkable
class Stochastic(Protocol):
    """Protocol of a budget whose gates are sampled, between 0 and 1, in each step of training."""

    def settled(self) -> Mapping[Gate, Tensor]:
        """Return the values of the gates that are deployed."""


def keep_all(standing: GateState, progress: float) -> dict[Gate, Tensor]:
    """Return the open units unchanged: a budget that closes nothing."""
    return dict(standing.open)


@dataclass(frozen=True)
class Share:
    """Budget that closes the units of lowest score until the others cost at most a share of all, which a schedule gives.

    With `per_cost`, units are ranked by score per parameter of their cost, which is fairer where some are far larger than others.
    With `regrow`, closed units open again where their score has overtaken others; else they never do.
    """

    schedule: Schedule
    per_cost: bool = False
    regrow: bool = False

    def __call__(self, standing: GateState, progress: float) -> dict[Gate, Tensor]:
        """Return the units of highest score that the schedule has room for; of equal ones, those that come last."""
        flat = torch.cat([table.flatten() for table in standing.open.values()])
        costs = torch.cat([standing.costs[gate].flatten() for gate in standing.open]).to(flat.device)
        scores = torch.cat([standing.scores[gate].flatten() for gate in standing.open])
        scores = scores / costs.clamp(min=1) if self.per_cost else scores
        if self.regrow:
            flat = torch.ones_like(flat)
        room = self.schedule(progress) * float(costs.sum()) * (1 + 1e-9)
        if room < float(torch.where(flat, costs, 0.0).sum()):
            flat &= ~_surplus(scores, costs, flat, room)
        parts = flat.split([table.numel() for table in standing.open.values()])
        pairs = zip(standing.open.items(), parts, strict=True)
        return {gate: part.reshape(table.shape) for (gate, table), part in pairs}


def _surplus(scores: Tensor, costs: Tensor, open_: Tensor, room: float) -> Tensor:
    """Return the open units of lowest score that must close so that the others cost no more than `room`, booleans."""
    if bool((costs == costs[0]).all()):
        return _least(scores, open_, int(open_.sum()) - int(room / float(costs[0])))
    here = open_.nonzero().flatten()
    ranked = here[scores[here].sort(stable=True).indices]
    left = costs[open_].sum() - costs[ranked].cumsum(0) + costs[ranked]
    closed = torch.zeros_like(open_)
    closed[ranked[left > room]] = True
    return closed


def _least(scores: Tensor, open_: Tensor, count: int) -> Tensor:
    """Return the `count` open units of lowest score, booleans, without sorting them (there may be millions); of equal ones the first."""
    if count <= 0:
        return torch.zeros_like(open_)
    ranked = scores if bool(open_.all()) else scores[open_]
    edge = _smallest(ranked, count)
    closed, equal = open_ & (scores < edge), open_ & (scores == edge)
    room = count - int(closed.sum())
    if int(equal.sum()) > room:
        equal[equal.nonzero().flatten()[room:]] = False
    return closed | equal


def _smallest(values: Tensor, count: int) -> float:
    """Return the `count`-th smallest number (from 1).

    GPUs sort millions in a millisecond; CPUs take a tenth of a second even without sorting.
    """
    if values.device.type == "cpu":
        return float(np.partition(values.numpy(), count - 1)[count - 1])
    return float(values.sort().values[count - 1])


@dataclass(frozen=True)
class Threshold:
    """Budget that opens the units whose sigmoid(score) lies above a threshold, which a schedule gives; their number is not fixed."""

    schedule: Schedule

    def __call__(self, standing: GateState, progress: float) -> dict[Gate, Tensor]:
        """Return the units above the threshold."""
        edge = self.schedule(progress)
        return {gate: score.sigmoid() > edge for gate, score in standing.scores.items()}


@dataclass(frozen=True, eq=False)
class KeepOpen:
    """Another budget in which the units `kept` always stay open."""

    budget: GateBudget
    kept: Opened

    def __call__(self, standing: GateState, progress: float) -> dict[Gate, Tensor]:
        """Return the units that the other budget opens, and those of `kept`."""
        found = self.budget(standing, progress)
        return {
            gate: open_ | self.kept[gate].to(open_.device) if gate in self.kept else open_
            for gate, open_ in found.items()
        }
