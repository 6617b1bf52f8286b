"""Magnitude score, and random scores as a baseline."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.analysis import Units
from fxprune.ir import attribute
from fxprune.scores.base import Evidence, Worth, additive
from fxprune.storage import let_go


def magnitude(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """Score units by the squared norm of their weights over all members, each member scaled to a mean of one.

    Without scaling, a large matrix would dominate a small one that the unit needs as much. Vectors (biases, norms) count only where
    the axis has no other members.
    """
    return {units: additive(units, _magnitude(evidence, units)) for units in asked}


def _magnitude(evidence: Evidence, units: Units) -> Tensor:
    analysis = evidence.analysis
    nodes = analysis.program.reads()
    learned = [member for member in units.axis.members if member.learned]
    held = analysis.program.graph_module
    values = {member.name: attribute(held, member.name).detach() for member in learned}
    wide = [member for member in learned if values[member.name].dim() > 1] or learned
    worth = torch.zeros(units.count, dtype=torch.float64)
    for member in wide:
        squares = values[member.name].abs().to(torch.float64).square()
        let_go(values[member.name])
        dims = list(analysis.flow.dims[nodes[member.name]])
        part = units.total(squares.movedim(member.dim, 0), [dims.pop(member.dim), *dims])
        worth += part / part.mean().clamp_min(1e-30) if part is not None else 0.0
    return worth


def random_score(evidence: Evidence, asked: Sequence[Units]) -> dict[Units, Worth]:
    """Score units by uniform random numbers, the same for the same axis and seed."""
    return {units: additive(units, _drawn(evidence.objective.seed, units)) for units in asked}


def _drawn(seed: int, units: Units) -> Tensor:
    digest = hashlib.sha256(f"{seed} {units.axis.name}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(units.count, generator=random, dtype=torch.float64)
