"""GRAIN, gradient-based intra-attention pruning (arXiv 2212.07634): a configuration of gates, scores and a schedule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fxprune.analysis import Analysis, Axis, analyze
from fxprune.distill import Losses
from fxprune.errors import RefusedError
from fxprune.gates import Asked, Gated, gate
from fxprune.pipeline import require
from fxprune.program import Program
from fxprune.pruner import Pruner, Taylor
from fxprune.schedules import Cubic


@dataclass(frozen=True)
class Grain:
    """Neurons, and query/key and value dims of each head, leave while a student is taught; the defaults are the paper's.

    In a training loop, for each batch: `grain.backward(pruner, losses)`, `pruner.step(progress)`, the optimizer's step.
    """

    density: float = 0.05  #: the share of the gated parameters that stays
    alpha: float = 0.3  #: structure regularisation: heads with few value dims left empty first; 0: none
    beta: float = 0.998  #: of the scores' moving average
    start: float = 0.2  #: the progress at which units begin to leave
    end: float = 0.4  #: and at which all have left that do
    temperature: float = 8.0  #: of the logits that are taught
    separate: bool = True  #: whether scores feel the loss of the logits only

    def __post_init__(self) -> None:
        require(0 < self.density <= 1, f"density must lie in (0, 1], got {self.density:g}")
        require(self.alpha >= 0, f"alpha must be at least 0, got {self.alpha:g}")
        require(0 <= self.beta < 1, f"beta must lie in [0, 1), got {self.beta:g}")

    def gated(self, program: Program) -> Gated:
        """The program with gates on its neurons, and on the dims of its heads, of each head apart where the graph allows it.

        RefusedError where it has neither.
        """
        analysis = analyze(program)
        units = [_apart(analysis, axis) for axis in analysis.axes if _is_unit(axis)]
        if not units:
            raise RefusedError("no neurons and no dims of heads in this program: see `fxprune explain`")
        return gate(program, units)

    def pruner(self, gated: Gated, module: nn.Module) -> Pruner:
        """What closes the gates of a module that trains."""
        role = {axis.name: axis.role for axis in analyze(gated.base).axes}
        values = [each for each in gated.gates if each.within and role[each.of] == "v"]
        alpha = dict.fromkeys(values, self.alpha) if self.alpha else {}
        return Pruner(gated, module, Cubic(self.density, self.start, self.end), Taylor(self.beta, alpha))

    def backward(self, pruner: Pruner, losses: Losses) -> None:
        """The backward pass of one batch."""
        if self.separate:
            pruner.observe(losses.logits)
        (losses.logits + losses.hidden).backward()


def _is_unit(axis: Axis) -> bool:
    return axis.role in ("ffn", "qk", "v") and axis.exact and not axis.choices


def _apart(analysis: Analysis, axis: Axis) -> Asked:
    outer = analysis.within(axis.name) if axis.role != "ffn" else ()
    return (axis.name, outer[0]) if outer else axis.name
