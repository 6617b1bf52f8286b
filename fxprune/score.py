"""Scores: how much each unit of an axis is worth, one row a score. They see any axis of any graph through its members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis import Axis
from fxprune.masks import coordinates
from fxprune.program import Program, attribute


@dataclass(frozen=True)
class Score:
    """A row of the table: what it is, and the function (program, axis) -> worth of each unit, float64 [axis.size]."""

    help: str
    function: Callable[[Program, Axis], Tensor]


def magnitude(program: Program, axis: Axis) -> Tensor:
    """The squared norm of a unit's weights over all members, each member scaled to a mean of one.

    Scaling keeps a large matrix from drowning a small one that the unit needs as much; vectors (biases, norms) don't count, unless
    the axis has nothing else.
    """
    learned = [member for member in axis.members if member.learned]
    matrices = [member for member in learned if attribute(program.graph, member.name).dim() > 1] or learned
    worth = torch.zeros(axis.size, dtype=torch.float64)
    for member in matrices:
        part = _by_unit(
            attribute(program.graph, member.name),
            member.dim,
            coordinates(member.carrier, axis.leaf),
            axis.size,
        )
        worth += part / part.mean().clamp_min(1e-30)
    return worth


def _by_unit(value: Tensor, dim: int, units: Tensor, size: int) -> Tensor:
    """Squares of a tensor, summed by unit."""
    others = [i for i in range(value.dim()) if i != dim]
    squares = value.detach().to(torch.float64).abs().square()
    along = squares.sum(others) if others else squares
    carried = units >= 0
    return torch.zeros(size, dtype=torch.float64).index_add_(0, units[carried], along.cpu()[carried])


SCORES: dict[str, Score] = {
    "magnitude": Score("norm of the unit's weights, over all coupled parameters", magnitude),
}
