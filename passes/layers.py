"""Layer pruning: whole layers, or single residual branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.analysis import Analysis, Region, analyze
from fxprune.analysis.regions import UNITS
from fxprune.ir import Program, Selection
from fxprune.pipeline import EMPTY, Context, Scoped, require
from fxprune.search.layer_scores import (
    BlockInfluenceRater,
    EvaluationRater,
    FaithfulnessRater,
    LastLayersRater,
)
from fxprune.search.layer_search import SEARCHES, LayerSearchResult, search_layers

#: how a candidate is judged where the context has no `evaluate`, and what that is
_SCORES = {
    "influence": "cosine of a region's input and output on calibration data (the example inputs where none are given)",
    "loss": "how far the outputs move on calibration data without it",
    "last": "nothing is measured: the last ones go",
}


@dataclass(frozen=True)
class Layers(Scoped):
    """Remove whole layers or residual branches; a search says which."""

    name: ClassVar[str] = "layers"
    uses: ClassVar[tuple[str, ...]] = ("data", "evaluate", "executor")

    count: int = 0  #: how many go
    ratio: float = 0.0  #: or what fraction of them, rounded down
    unit: str = "layer"  #: layer or branch
    search: str = "greedy"  #: greedy, oneshot or exhaustive
    score: str = "influence"  #: influence, loss or last: what decides where the context has no evaluator
    journal: str = ""  #: a file that remembers evaluations, so that a killed search goes on

    def __post_init__(self) -> None:
        require(self.count >= 0, f"count must not be negative, got {self.count}")
        require(0 <= self.ratio < 1, f"ratio must lie in [0, 1), got {self.ratio:g}")
        require(bool(self.count) != bool(self.ratio), "say either count or ratio, as in layers(count=2)")
        require(self.unit in UNITS, f"unit must be one of {', '.join(UNITS)}, got {self.unit!r}")
        require(self.search in SEARCHES, f"search must be one of {', '.join(SEARCHES)}, got {self.search!r}")
        require(self.score in _SCORES, f"score must be one of {', '.join(_SCORES)}, got {self.score!r}")
        super().__post_init__()

    def candidates(self, analysis: Analysis) -> list[Region]:
        return [r for r in analysis.regions if r.unit == self.unit and not r.why]

    def plan(self, program: Program, context: Context = EMPTY) -> Selection:
        found = self.find(program, context)
        return Selection(removed=found.order) if found else Selection()

    def find(self, program: Program, context: Context = EMPTY) -> LayerSearchResult | None:
        """Run the search and return its order, scores and evaluations; None where the count is 0 or nothing can be removed."""
        analysis = analyze(program)
        found = self.candidates(analysis)
        names = [region.name for region in found if self.scope(analysis).takes(region)]
        count = self.count or int(len(names) * self.ratio)
        if not count or not names:
            return None
        return search_layers(
            self.search, self._rater(program, context), names, count, context.count, len(found) - len(names)
        )

    def _rater(
        self, program: Program, context: Context
    ) -> EvaluationRater | BlockInfluenceRater | LastLayersRater:
        if context.evaluate is None and self.score == "last":
            return LastLayersRater()
        data = context.calibration(program) if context.evaluate is None else None
        batches = data.batches if data else ()
        if context.evaluate is None and self.score == "influence":
            return BlockInfluenceRater(program, batches)
        evaluate = context.evaluate or FaithfulnessRater(program, batches)
        return EvaluationRater(program, evaluate, self.journal or None, context.executor)
