"""Row-block splitting: smaller products for row blocks that read different columns, where that is measured to be faster."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from fxprune.analysis import analyze
from fxprune.ir import Program, Selection
from fxprune.pipeline import EMPTY, Context, Measuring, Outcome
from fxprune.search.alternatives import cheaper_splits


@dataclass(frozen=True)
class Split(Measuring):
    """Replace a matrix with zeros by a few smaller products where that is measured to be faster; no output changes. It goes last."""

    name: ClassVar[str] = "split"
    preserves: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("settings", "point", "cache")

    def run(self, program: Program, context: Context = EMPTY) -> Outcome:
        """Split where it pays; the details list the splits that were tried, with both costs."""
        clock, point = context.clock(self.settings(context)), self.point(program, context)
        slim, verdicts = cheaper_splits(program, clock, point, self.scope(analyze(program)).takes)
        return Outcome(slim, Selection(), (), {"splits": [asdict(v) | {"pays": v.pays} for v in verdicts]})
