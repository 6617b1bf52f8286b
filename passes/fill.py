"""What stays zero within dense matrices is filled, to be trained on (hybrid-filled, arXiv 2109.04838)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.ir.program import Program
from fxprune.ir.selection import Selection
from fxprune.passes.fill_zeros import fill_zeros
from fxprune.pipeline.base import Outcome, Pass, require

ROLES = ("heads", "qk", "v", "ffn", "rank")


@dataclass(frozen=True)
class Fill(Pass):
    """Fill zeros within matrices of heads and neurons with small random numbers, for training to use: `blocks(…), fill, distill`."""

    name: ClassVar[str] = "fill"

    scale: float = 0.01  #: of the standard deviation of what is there
    seed: int = 0  #: of the numbers

    def __post_init__(self) -> None:
        require(self.scale > 0, f"scale must be positive, got {self.scale:g}")

    def run(self, program: Program) -> Outcome:
        """The program with the same shapes; the matrices that were filled count as re-fitted."""
        done, counts = fill_zeros(program, ROLES, self.scale, self.seed)
        return Outcome(done, Selection(), tuple(counts), {"filled": counts})
