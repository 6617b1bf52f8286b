"""FLOP (arXiv 1910.04732): factorise matrices, and remove ranks while a student trains with a teacher, by hard concrete gates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.analysis import Analysis, analyze
from fxprune.errors import RefusedError
from fxprune.gates import Gated
from fxprune.gates.insert import gate
from fxprune.ir import Point, Program
from fxprune.pipeline import Scoped, Training, require
from fxprune.rewrite.factorize import Factors, factorize
from fxprune.search.alternatives import cheaper_factors
from fxprune.search.rank_plans import groups
from fxprune.training import Losses, Pruner
from fxprune.training.hard_concrete import HardConcrete
from fxprune.training.pruner import unit_costs

LEAST = 4
"""Smallest break-even rank (where factors are as large as the matrix) of matrices that are factorised; others stay whole."""


@dataclass(frozen=True)
class Flop(Scoped, Training):
    """Factorise matrices, and remove ranks while a student is taught until a share of the factors is gone (FLOP; `fxprune train`).

    Axes of role rank that the program has already (thin embeddings with a projection) get gates as well. The authors train with labels
    alone: that is `hard=1`.
    """

    name: ClassVar[str] = "flop"
    hidden: ClassVar[float] = 0.0

    sparsity: float = 0.5  #: the share of the factors' parameters that leaves; with start=1 they have as many as the matrices
    start: float = 1.0  #: the rank to begin with, as a share of the one that saves nothing
    warmup: float = 0.5  #: the progress until which the sparsity that is asked for rises
    rate: float = 0.05  #: how fast gates and multipliers learn
    dropped: float = 0.05  #: how often, roughly, gates are small at first (the paper's code: 0.05 to 0.5)
    factorized: bool = True  #: whether matrices become factors; else only ranks that are there leave
    temperature: float = 2.0  #: of the logits that are taught
    hard: float = 0.1  #: how much labels count beside them
    seed: int | None = None  #: of what gates draw

    def __post_init__(self) -> None:
        require(0 < self.sparsity < 1, f"sparsity must lie between 0 and 1, got {self.sparsity:g}")
        require(self.start > 0, f"start must be positive, got {self.start:g}")
        require(0 < self.warmup <= 1, f"warmup must lie in (0, 1], got {self.warmup:g}")
        require(0 < self.dropped < 1, f"dropped must lie between 0 and 1, got {self.dropped:g}")
        require(0 <= self.hard <= 1, f"hard must lie in [0, 1], got {self.hard:g}")
        super().__post_init__()

    def gated(self, program: Program) -> Gated:
        """Return the program with factors, and a gate on each rank; RefusedError where there is nothing to gate."""
        scope = self.scope(analyze(program))
        found = starts(scope.analysis, self.start) if self.factorized else {}
        ranks = {name: rank for name, rank in found.items() if scope.takes(name)}
        made = factorize(program, ranks, balanced).program if ranks else program
        within = replace(self.scope(analyze(made)), roles=frozenset({"rank"}))
        axes = [axis for axis in within.axes() if axis.exact and not axis.choices]
        if not axes:
            raise RefusedError("no matrix of this program can become two: see `fxprune explain`")
        return gate(made, [axis.name for axis in axes])

    def pruner(self, gated: Gated, module: nn.Module) -> Pruner:
        """Return the pruner that samples the gates of `module` during training."""
        concrete = HardConcrete(
            unit_costs(gated), self.sparsity, self.warmup, self.rate, self.dropped, seed=self.seed or 0
        )
        made = Pruner(gated, module, concrete, concrete)
        concrete.bind(made.scores, made.slots)
        return made

    def loss(self, pruner: Pruner, losses: Losses) -> Tensor:
        """Return the training loss: that of the logits. The Lagrangian acts on the gates alone, in `HardConcrete`."""
        return losses.logits

    def finish(self, program: Program, clock: Any, point: Point) -> Program:
        """Return the program with factors merged where they are not measured to be faster than their product."""
        return cheaper_factors(program, clock, point)[0]


def starts(analysis: Analysis, share: float) -> dict[str, int]:
    """Return an initial rank for each matrix: a share of its break-even rank, where its factors are as large as the matrix."""
    tensors = analysis.program.tensors()
    own = [matrix for group in groups(analysis, apart=True) for matrix in group]
    sizes = {matrix.weight: tuple(matrix.read(tensors[matrix.weight]).shape) for matrix in own}
    even = {name: outputs * columns / (outputs + columns) for name, (outputs, columns) in sizes.items()}
    return {n: max(1, min(int(share * even[n]), *sizes[n])) for n in sizes if even[n] >= LEAST}


def balanced(weight: Tensor, rank: int) -> Factors:
    """Return the SVD of this rank, with the roots of the singular values in both factors, so that both train alike."""
    u, s, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(weight.dtype), (root[:, None] * v[:rank]).to(weight.dtype)
