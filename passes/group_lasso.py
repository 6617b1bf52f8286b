"""Reweighted group lasso (arXiv 2009.08065): shrink groups of weights (of a block, a column or a unit) to zero, cut, and retrain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from fxprune.analysis import Analysis, Units, analyze
from fxprune.dims import BlockSizes
from fxprune.dims.blocks import BlockGrid, even_blocks
from fxprune.errors import RefusedError
from fxprune.gates import Gate, Gated
from fxprune.gates.blocked_weights import BlockedWeight
from fxprune.gates.gate import tensors_of
from fxprune.gates.insert import gate
from fxprune.ir import Program
from fxprune.pipeline import Scoped, Training, require
from fxprune.training import Losses, Pruner
from fxprune.training.group_lasso import Lasso, OneShot, Squares
from fxprune.training.loop import undecayed

_ROLES = ("heads", "qk", "v", "ffn", "rank")

#: groups: what they are
GROUPS = {
    "columns": "the columns of each block of rows",
    "rows": "the rows of each block of columns",
    "axes": "whole units: all weights of a neuron, or of a head",
    "both": "the columns of each block of rows, and whole columns besides: what all blocks drop leaves at the producer",
}


@dataclass(frozen=True)
class GroupLasso(Scoped, Training):
    """Pull groups of weights to zero in reweighted rounds, cut them, and retrain what is left (group lasso; `fxprune train`).

    A reconstruction: the authors published no code, and the body of the paper was not available.
    """

    name: ClassVar[str] = "group_lasso"
    hidden: ClassVar[float] = 0.0

    density: float = 0.0  #: the share of each matrix's groups that stays
    threshold: float = 0.0  #: or: groups stay whose norm is larger
    groups: str = "both"  #: columns, rows, axes or both
    blocks: int = 4  #: into how many each matrix is cut
    strength: float = 1e-4  #: how hard groups are pulled
    rounds: int = 4  #: of reweighting
    until: float = 0.3  #: the progress at which groups are cut, and retraining begins
    eps: float = 1e-6  #: added to squared norms
    equal: bool = False  #: whether each block keeps equally many groups
    temperature: float = 2.0  #: of the logits that are taught
    hard: float = 0.1  #: how much labels count beside them

    def __post_init__(self) -> None:
        require(
            (self.density > 0) != (self.threshold > 0),
            "say density or threshold, as in group_lasso(density=0.5)",
        )
        require(self.density <= 1, f"density must lie in (0, 1], got {self.density:g}")
        require(self.groups in GROUPS, f"groups must be one of {', '.join(GROUPS)}, got {self.groups!r}")
        require(min(self.blocks, self.rounds) >= 1, "blocks and rounds must be at least 1")
        require(0 < self.until < 1, f"until must lie between 0 and 1, got {self.until:g}")
        super().__post_init__()

    def gated(self, program: Program) -> Gated:
        """Return the program with gates on its groups; RefusedError where it has none."""
        analysis = analyze(program)
        scope = self.scope(analysis)
        if self.groups == "axes":
            roles = self.wanted() or ("heads", "ffn")
            axes = [a.name for a in scope.axes() if a.role in roles and a.exact and not a.choices]
            if not axes:
                raise RefusedError("no exact axis of heads or neurons: see `fxprune explain`")
            return gate(program, axes)
        found = scope.blocked(_ROLES)
        if not found:
            raise RefusedError("no matrix of heads or neurons with weights of its own: see `fxprune explain`")
        return gate(
            program, blocks={site.matrix.weight: self._grid(analysis, site) for site in found}, biases=True
        )

    def _grid(self, analysis: Analysis, site: BlockedWeight) -> tuple[BlockSizes, BlockSizes]:
        """Return the block sizes: a cut along the outputs (for groups of columns), or along the inputs (of rows), and 1 the other way."""
        outputs = int(site.matrix.turned)
        cut = outputs if self.groups != "rows" else 1 - outputs
        dims = analysis.flow.dims[analysis.program.reads()[site.matrix.weight]]
        sizes: list[BlockSizes] = [1, 1]
        sizes[cut] = even_blocks(dims[cut], self.blocks)
        return sizes[0], sizes[1]

    def pruner(self, gated: Gated, module: nn.Module) -> Pruner:
        """Return the pruner that shrinks the groups of `module` during training, and cuts them."""
        tensors = tensors_of(module)
        squares = {each: _squares(gated, each, tensors) for each in gated.gates}
        undecayed(tensors[each.of] for each in gated.gates if each.grid is not None)
        wide = frozenset(gated.gates if self.groups == "both" else ())
        lasso = Lasso(squares, self.strength, self.rounds, self.until, self.eps, wide)
        made = Pruner(gated, module, OneShot(self.until, self.density, self.threshold, self.equal), lasso)
        lasso.bind(made.scores, made.slots)
        return made

    def loss(self, pruner: Pruner, losses: Losses) -> Tensor:
        """Return the training loss: that of the logits, plus the penalty on the groups until the rounds are over."""
        assert isinstance(pruner.score, Lasso)
        return losses.logits + pruner.score.penalty().to(losses.logits.device)


def _squares(gated: Gated, one: Gate, tensors: dict[str, Tensor]) -> Squares:
    if one.grid is not None:
        return partial(_of_blocks, tensors[one.of], one.grid)
    analysis = analyze(gated.base)
    axis, nodes = analysis.axis(one.of), gated.base.reads()
    units = Units(axis)
    names = dict.fromkeys(member.name for member in axis.members if member.learned)
    parts: list[Callable[[], Tensor | None]] = [
        partial(_of_units, units, tensors[name], analysis.flow.dims[nodes[name]]) for name in names
    ]
    return lambda: torch.stack([part for make in parts if (part := make()) is not None]).sum(0)


def _of_units(units: Units, weight: Tensor, dims: tuple[object, ...]) -> Tensor | None:
    total = units.total(weight.square(), dims)  # type: ignore[arg-type]
    return total if total is None else total.to(weight.device)


def _of_blocks(weight: Tensor, grid: BlockGrid) -> Tensor:
    """Return the sum of squares of each block."""
    return grid.totals(weight.flatten(1).square())
