"""Distillation: train the program that earlier passes left with a teacher, and remove nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fxprune.gates import Gated
from fxprune.gates.insert import gate
from fxprune.ir import Program
from fxprune.pipeline import Training, require
from fxprune.training import Losses, Pruner
from fxprune.training.gate_budgets import keep_all


@dataclass(frozen=True)
class Distill(Training):
    """Train what is left once more, by the teacher, and remove nothing (`fxprune train`)."""

    name: ClassVar[str] = "distill"

    epochs: int = 0  #: 0: as many as `--epochs` says
    temperature: float = 2.0  #: of the logits that are taught
    hard: float = 0.1  #: how much labels count beside them
    hidden: float = 0.0  #: how much hidden states count beside logits

    def __post_init__(self) -> None:
        require(self.epochs >= 0, f"epochs must be at least 0, got {self.epochs}")
        require(0 <= self.hard <= 1, f"hard must lie in [0, 1], got {self.hard:g}")

    def gated(self, program: Program) -> Gated:
        """Return the program without gates."""
        return gate(program)

    def pruner(self, gated: Gated, module: nn.Module) -> Pruner:
        """Return a pruner that closes nothing."""
        return Pruner(gated, module, keep_all)

    def loss(self, pruner: Pruner, losses: Losses) -> Tensor:
        """Return the training loss: that of the logits, plus `hidden` times that of the hidden states."""
        return losses.logits + self.hidden * losses.hidden
