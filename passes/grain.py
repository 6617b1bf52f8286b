"""GRAIN, gradient-based intra-attention pruning (arXiv 2212.07634): a configuration of gates, scores and a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fxprune.analysis import analyze
from fxprune.errors import RefusedError
from fxprune.gates import Gated
from fxprune.gates.gate import gate_target
from fxprune.gates.insert import gate
from fxprune.ir import Program
from fxprune.pipeline import Scoped, Training, require
from fxprune.rewrite.factorize import factorize
from fxprune.training import Cubic, Losses, Pruner, Share
from fxprune.training.gate_scores import Random, Taylor

#: units: the roles of the axes that get gates
_ROLES = {"dims": ("ffn", "qk", "v"), "heads": ("ffn", "heads")}


@dataclass(frozen=True)
class Grain(Scoped, Training):
    """Remove neurons, and query/key and value dims of each head, while a student is taught (GRAIN; `fxprune train`).

    The defaults are the paper's. In a training loop, for each batch: `grain.loss(pruner, losses).backward()`, `pruner.step(progress)`,
    the optimizer's step.
    """

    name: ClassVar[str] = "grain"
    hard: ClassVar[float] = 0.0

    density: float = 0.05  #: the share of the gated parameters that stays
    alpha: float = 0.3  #: structure regularisation: heads with few value dims left empty first; 0: none
    beta: float = 0.998  #: of the scores' moving average
    start: float = 0.2  #: the progress at which units begin to leave
    end: float = 0.4  #: and at which all have left that do
    temperature: float = 8.0  #: of the logits that are taught
    hidden: float = 1.0  #: how much hidden states count beside logits; 0: not at all
    separate: bool = True  #: whether scores feel the loss of the logits only
    rank: int = 0  #: of tables that ids are looked up in, which become two factors (192 in the paper); 0: they stay whole
    units: str = "dims"  #: neurons, and dims of each head apart (dims) or whole heads (heads)
    score: str = "taylor"  #: what stays: what the loss would miss most (taylor), or what a die says (random)
    per_cost: bool = False  #: whether units are ranked by score for each parameter (unequal sizes)
    seed: int | None = None  #: of the die

    def __post_init__(self) -> None:
        require(0 < self.density <= 1, f"density must lie in (0, 1], got {self.density:g}")
        require(self.alpha >= 0, f"alpha must be at least 0, got {self.alpha:g}")
        require(0 <= self.beta < 1, f"beta must lie in [0, 1), got {self.beta:g}")
        require(self.rank >= 0, f"rank must be at least 0, got {self.rank}")
        require(self.units in _ROLES, f"units must be one of {', '.join(_ROLES)}, got {self.units!r}")
        require(self.score in ("taylor", "random"), f"score must be taylor or random, got {self.score!r}")
        super().__post_init__()

    def wanted(self) -> frozenset[str]:
        return super().wanted() or frozenset(_ROLES[self.units])

    def gated(self, program: Program) -> Gated:
        """Return the program with gates on its neurons, and on its heads or their dims, per head where the graph allows it.

        RefusedError where it has neither.
        """
        scope = self.scope(analyze(program))
        tables = [n for n in _tables(program, self.rank) if not scope.outside(n)] if self.rank else ()
        program = factorize(program, dict.fromkeys(tables, self.rank)).program
        analysis = analyze(program)
        axes = [axis for axis in self.scope(analysis).axes() if axis.exact and not axis.choices]
        units = [gate_target(analysis, axis) for axis in axes]
        if not units:
            raise RefusedError("no neurons and no dims of heads in this program: see `fxprune explain`")
        return gate(program, units)

    def pruner(self, gated: Gated, module: nn.Module) -> Pruner:
        """Return the pruner that closes the gates of `module` during training."""
        role = {axis.name: axis.role for axis in analyze(gated.base).axes}
        values = [each for each in gated.gates if each.within and role[each.of] == "v"]
        alpha = dict.fromkeys(values, self.alpha) if self.alpha else {}
        score = Random(self.seed or 0) if self.score == "random" else Taylor(self.beta, alpha)
        budget = Share(Cubic(self.density, self.start, self.end), self.per_cost)
        return Pruner(gated, module, budget, score)

    def loss(self, pruner: Pruner, losses: Losses) -> Tensor:
        """Return the training loss: that of the logits, plus `hidden` times that of the hidden states; the caller runs backward."""
        if self.separate and losses.hidden.requires_grad:
            # Closed units never reopen: once the density is reached, no more close, and no score is needed.
            settled = pruner.density <= self.density
            pruner.observe(None if settled else losses.logits)
        return losses.logits + self.hidden * losses.hidden


def _tables(program: Program, rank: int) -> list[str]:
    """Return the tables that are indexed by inputs, and become at least a quarter smaller as two factors of this rank."""
    varies = analyze(program).flow.varies
    lookups = program.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default)
    tables = [node.args[0] for node in lookups if node.args[1] in varies]
    found = [str(table.target) for table in tables if table.op == "get_attr"]
    tensors = program.tensors()
    return [n for n in dict.fromkeys(found) if rank * sum(tensors[n].shape) <= 0.75 * tensors[n].numel()]
