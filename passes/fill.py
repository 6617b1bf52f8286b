"""Zero filling: replace zeros within dense matrices by small random numbers, to be trained on (hybrid-filled, arXiv 2109.04838)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fxprune.analysis import analyze
from fxprune.gates.blocked_weights import BlockedWeight
from fxprune.ir import Program, Selection, copy_graph, rebuild
from fxprune.pipeline import EMPTY, Context, Outcome, Scoped, require

FILLED_ROLES = ("heads", "qk", "v", "ffn", "rank")


@dataclass(frozen=True)
class Fill(Scoped):
    """Fill zeros within matrices of heads and neurons with small random numbers, for training to use: `blocks(…), fill, distill`."""

    name: ClassVar[str] = "fill"
    uses: ClassVar[tuple[str, ...]] = ("seed",)

    scale: float = 0.01  #: of the standard deviation of what is there
    seed: int | None = None  #: of the numbers

    def __post_init__(self) -> None:
        require(self.scale > 0, f"scale must be positive, got {self.scale:g}")
        super().__post_init__()

    def run(self, program: Program, context: Context = EMPTY) -> Outcome:
        """Return the program with the same shapes; the matrices that were filled count as re-fitted."""
        seed = context.seed or 0 if self.seed is None else self.seed
        done, counts = fill_zeros(
            program, self.scope(analyze(program)).blocked(FILLED_ROLES), self.scale, seed
        )
        return Outcome(done, Selection(), tuple(counts), {"filled": counts})


def fill_zeros(
    program: Program, sites: Sequence[BlockedWeight], scale: float, seed: int
) -> tuple[Program, dict[str, int]]:
    """Return the program, and how many zeros were filled in each of these matrices.

    Zeros become draws from N(mean, (scale · standard deviation)²) of the nonzero values (hybrid-filled, arXiv 2109.04838). Matrices that
    are all zero stay.
    """
    random = torch.Generator().manual_seed(seed)
    tensors, counts = program.tensors(), {}
    for site in sites:
        weight = tensors[site.matrix.weight]
        value = weight.detach().clone()
        empty = value == 0
        if not bool(empty.any()) or bool(empty.all()):
            continue
        mean, spread = value[~empty].mean(), value[~empty].std(correction=0) * scale
        drawn = torch.randn(int(empty.sum()), generator=random).to(value)
        value[empty] = mean + spread * drawn
        tensors[site.matrix.weight] = nn.Parameter(value, weight.requires_grad)
        counts[site.matrix.weight] = len(drawn)
    return rebuild(program, copy_graph(program), tensors), counts
