"""Shares: which gates are open at a moment of training, by their scores: as many as a schedule allows, or those above a threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fxprune.gates import Gate

Schedule: TypeAlias = Callable[[float], float]
"""A number for each moment, progress from 0 to 1."""

Opened: TypeAlias = Mapping[Gate, Tensor]
"""Which units are open, booleans."""


@dataclass(frozen=True, eq=False)
class Standing:
    """What is open, what each unit scores, and how many parameters it costs."""

    open: Opened
    scores: Mapping[Gate, Tensor]
    costs: Mapping[Gate, Tensor]


class GateBudget(Protocol):
    """How much is left, and when."""

    def __call__(self, standing: Standing, progress: float) -> dict[Gate, Tensor]:
        """Which units are open from now on; where gates are drawn by chance, their values."""


@runtime_checkable
class Stochastic(Protocol):
    """A budget whose gates are drawn by chance, between 0 and 1, in each step of training."""

    def settled(self) -> Mapping[Gate, Tensor]:
        """The gates that are deployed."""


def everything(standing: Standing, progress: float) -> dict[Gate, Tensor]:
    """A budget that closes nothing."""
    return dict(standing.open)


@dataclass(frozen=True)
class Share:
    """The least worthy units close until the others cost at most a share of all, which a schedule gives.

    With `per_cost`, units are ranked by score for each parameter that they cost, which is fairer where some are far larger than others.
    With `regrow`, closed units open again where their score has overtaken others; else they never do.
    """

    schedule: Schedule
    per_cost: bool = False
    regrow: bool = False

    def __call__(self, standing: Standing, progress: float) -> dict[Gate, Tensor]:
        """The best units that the schedule has room for; of equal ones, those that come last."""
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
        return {
            gate: part.reshape(standing.open[gate].shape)
            for gate, part in zip(standing.open, parts, strict=True)
        }


def _surplus(scores: Tensor, costs: Tensor, open_: Tensor, room: float) -> Tensor:
    """The least worthy open units that must close until the others cost no more than there is room for, booleans."""
    if bool((costs == costs[0]).all()):
        return _least(scores, open_, int(open_.sum()) - int(room / float(costs[0])))
    here = open_.nonzero().flatten()
    ranked = here[scores[here].sort(stable=True).indices]
    left = costs[open_].sum() - costs[ranked].cumsum(0) + costs[ranked]
    closed = torch.zeros_like(open_)
    closed[ranked[left > room]] = True
    return closed


def _least(scores: Tensor, open_: Tensor, count: int) -> Tensor:
    """The `count` open units of least score, found without sorting them all (there may be millions); of equal ones the first."""
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
    """The number in this place, from 1; graphics cards sort millions in a millisecond, CPUs take a tenth of a second without sorting."""
    if values.device.type == "cpu":
        return float(np.partition(values.numpy(), count - 1)[count - 1])
    return float(values.sort().values[count - 1])


@dataclass(frozen=True)
class Threshold:
    """Units are open whose sigmoid(score) lies above a threshold, which a schedule gives; how many these are, the scores decide."""

    schedule: Schedule

    def __call__(self, standing: Standing, progress: float) -> dict[Gate, Tensor]:
        """Above the threshold, or closed."""
        edge = self.schedule(progress)
        return {gate: score.sigmoid() > edge for gate, score in standing.scores.items()}


@dataclass(frozen=True, eq=False)
class Keeping:
    """Another budget, but these units always stay open."""

    budget: GateBudget
    kept: Opened

    def __call__(self, standing: Standing, progress: float) -> dict[Gate, Tensor]:
        """What the other budget opens, and these."""
        found = self.budget(standing, progress)
        return {
            gate: open_ | self.kept[gate].to(open_.device) if gate in self.kept else open_
            for gate, open_ in found.items()
        }
