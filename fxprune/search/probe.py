"""Error calibration: scale the errors that scores predict to the measured change of the outputs, on a few rows, site by site.

A score treats one reader at a time and rows as independent; where errors of neighbouring places are alike (images), it is far too low. One
cut of each site is tried, its readers are re-fitted, and all errors of the site are scaled by the ratio of measured to predicted error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.analysis import Analysis
from fxprune.calibration import Calibration, Objective
from fxprune.calibration.data import run_batch, shortened
from fxprune.calibration.prefixes import Prefixes
from fxprune.calibration.repair import LIVE, repair
from fxprune.ir import Program
from fxprune.ir.signature import required_outputs
from fxprune.rewrite.apply import apply
from fxprune.rewrite.bypass import bypass
from fxprune.search.plans import SiteChoice, selection_of

_ROWS = 48
"""Approximate number of rows on which outputs are compared, and the least on which readers are re-fitted."""

NUMBERS = 1 << 25
"""Approximate limit of output elements in all: a language model gives millions per row, and few rows suffice."""

SHARE = 0.75
"""Share of a site's main axis that its probe keeps."""

TRUST = 100.0
"""Errors are scaled by no more than this, and by no less than its inverse."""


@dataclass
class Probe:
    """Trial of cuts, one site at a time; `how` names the repair that will follow."""

    analysis: Analysis
    data: Calibration
    objective: Objective
    how: str
    observe: Callable[[str], None]

    def __post_init__(self) -> None:
        first = self.data.batches[0]
        numbers = sum(map(math.prod, _sizes(_run(self.analysis.program, first))))
        a_row = numbers / Calibration((first,)).rows
        few = min(_ROWS, NUMBERS / max(1.0, a_row))
        self.few, program = _few(self.data, few), self.analysis.program
        each = max(1, round(few / len(self.few.batches)))
        self.compared = [shortened(program, batch, each) for batch in self.few.batches]
        kept = (*self.compared, *self.few.batches)
        self.prefixes = Prefixes(program, kept, int(LIVE * program.parameter_bytes()))
        self.outputs = [_required(program, self.prefixes.run(program, batch)) for batch in self.compared]

    def calibrated(self, choices: Sequence[SiteChoice], branches: bool) -> list[SiteChoice]:
        """Return the choices with their errors scaled, and with `branches` also with the error without their branch."""
        found: list[SiteChoice] = []
        for i, choice in enumerate(choices):
            self.observe(f"probing {choice.site.main.name} ({i + 1} of {len(choices)})")
            gone = self._without(choice.site.branch) if branches and choice.site.branch else None
            found.append(replace(choice, gone=gone, scale=self._scale(choice)))
        return found

    def _scale(self, choice: SiteChoice) -> float:
        option = choice.near(SHARE)
        chosen = selection_of([choice], [option])
        if not len(chosen) or not option.error > 0:
            return 1.0
        slim = apply(self.analysis.program, chosen)
        if slim.free_outputs and _sizes(_run(slim, self.compared[0])) != _sizes(self.outputs[0]):
            return 1.0  # an output that shrinks itself can't be compared
        how = "none" if self.how.partition("+")[0] == "none" or len(self.few.batches) < 2 else "readers"
        done = repair(self.analysis.program, slim, chosen, self.few, how, prefixes=self.prefixes)
        found = self.gap(done.program)
        return min(max(found / option.error, 1 / TRUST), TRUST)

    def _without(self, branch: str) -> float:
        return self.gap(bypass(self.analysis.program, [branch]))

    def gap(self, candidate: Program) -> float:
        """Return the distance of a candidate's outputs from the original's by the objective, averaged over batches."""
        pairs = zip(self.compared, self.outputs, strict=True)
        gaps = [
            self.objective.gap(output, _required(candidate, self.prefixes.run(candidate, batch)), batch)
            for batch, output in pairs
        ]
        return sum(gaps) / len(gaps)


def _sizes(outputs: Any) -> list[tuple[int, ...]]:
    return [tuple(value.shape) for value in pytree.tree_leaves(outputs) if isinstance(value, Tensor)]


def _few(data: Calibration, rows: float) -> Calibration:
    """Return batches spread over the data, of about so many rows in all, but more than one where there are more."""
    count = max(2, round(rows * len(data.batches) / max(1, data.rows)))
    step = max(1, len(data.batches) // count)
    return Calibration(data.batches[::step][:count])


def _run(program: Program, batch: dict[str, Tensor]) -> Any:
    return _required(program, run_batch(program, batch))


def _required(program: Program, results: Any) -> Any:
    return tuple(required_outputs(program, pytree.tree_leaves(results))) if program.spare else results
