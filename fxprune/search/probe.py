"""Error calibration: scale the errors that scores predict to the measured change of the outputs, on a few rows, site by site.

A score treats one reader at a time and rows as independent; where errors of neighbouring places are alike (images), it is far too low. One
cut of a site is tried, its readers are re-fitted, and all errors of the site are scaled by the ratio of measured to predicted error. Of
many sites that compute the same, as the layers of a deep network do, some are tried, and those whose predicted error is unlike the others';
the rest have the median ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.analysis import Analysis
from fxprune.calibration import Calibration, Objective
from fxprune.calibration.data import run_batch, shortened
from fxprune.calibration.memory import live_limit
from fxprune.calibration.prefixes import Prefixes
from fxprune.calibration.repair import repair
from fxprune.ir import Program
from fxprune.ir.signature import required_outputs
from fxprune.rewrite.apply import apply
from fxprune.rewrite.bypass import bypass
from fxprune.search.plans import SiteChoice, selection_of
from fxprune.storage.devices import to_device

_ROWS = 48
"""Approximate number of rows on which outputs are compared, and the least on which readers are re-fitted."""

NUMBERS = 1 << 24
"""Approximate limit of output elements in all: a language model gives millions per row, and few rows suffice."""

SHARE = 0.75
"""Share of a site's main axis that its probe keeps."""

TRUST = 100.0
"""Errors are scaled by no more than this, and by no less than its inverse."""

UNKNOWN = 1.0
"""Scale of a site whose cut can't be compared, or has no error."""

ALIKE = 8
"""Number of sites that compute the same up to which each is tried; of more, so many, the first and the last among them."""

UNLIKE = 3.0
"""A site is tried as well where its predicted error is so many times as large as the median of those that compute the same, or as small."""


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
        self.prefixes = Prefixes(program, kept, live_limit(program))
        self.outputs = [_required(program, self.prefixes.run(program, batch)) for batch in self.compared]

    def calibrated(self, choices: Sequence[SiteChoice], branches: bool) -> list[SiteChoice]:
        """Return the choices with their errors scaled, and with `branches` also with the error without their branch."""
        kinds = [_Alike(places, _spread(places), choices) for places in _alike(choices)]
        tried = sorted(place for kind in kinds for place in kind.tried())
        known: dict[int, float] = {}
        for i, place in enumerate(tried):
            self.observe(f"probing {choices[place].site.main.name} ({i + 1} of {len(tried)})")
            known[place] = self._scale(choices[place])
        scales = {place: scale for kind in kinds for place, scale in kind.scales(known).items()}
        gone = [self._gone(choice) if branches else None for choice in choices]
        return [replace(choice, gone=gone[i], scale=scales[i]) for i, choice in enumerate(choices)]

    def _gone(self, choice: SiteChoice) -> float | None:
        """Return the error without the branch of a site; None where it has none."""
        if not choice.site.branch:
            return None
        self.observe(f"probing the branch of {choice.site.main.name}")
        return self.gap(bypass(self.analysis.program, [choice.site.branch]))

    def _scale(self, choice: SiteChoice) -> float:
        option = choice.near(SHARE)
        chosen = selection_of([choice], [option])
        if not len(chosen) or not option.error > 0:
            return UNKNOWN
        slim = apply(self.analysis.program, chosen)
        if slim.free_outputs and _sizes(_run(slim, self.compared[0])) != _sizes(self.outputs[0]):
            return UNKNOWN  # an output that shrinks itself can't be compared
        how = "none" if self.how.partition("+")[0] == "none" or len(self.few.batches) < 2 else "readers"
        done = repair(self.analysis.program, slim, chosen, self.few, how, prefixes=self.prefixes)
        found = self.gap(done.program)
        return min(max(found / option.error, 1 / TRUST), TRUST)

    def gap(self, candidate: Program) -> float:
        """Return the distance of a candidate's outputs from the original's by the objective, averaged over batches."""
        pairs = zip(self.compared, self.outputs, strict=True)
        gaps = [
            self.objective.gap(
                output,
                _required(candidate, self.prefixes.run(candidate, batch)),
                {name: to_device(value) for name, value in batch.items()},
            )
            for batch, output in pairs
        ]
        return sum(gaps) / len(gaps)


def _alike(choices: Sequence[SiteChoice]) -> list[list[int]]:
    """Return the places of choices that compute the same: these share their measured costs."""
    found: dict[int, list[int]] = {}
    for place, choice in enumerate(choices):
        found.setdefault(id(choice.cost), []).append(place)
    return list(found.values())


def _spread(places: Sequence[int]) -> list[int]:
    """Return the places to try: all of a few, else ALIKE of them, evenly spread from the first to the last."""
    if len(places) <= ALIKE:
        return list(places)
    return [places[round(i * (len(places) - 1) / (ALIKE - 1))] for i in range(ALIKE)]


@dataclass(frozen=True)
class _Alike:
    """Sites that compute the same: their places among the choices, and those of a sample."""

    places: Sequence[int]
    sample: Sequence[int]
    choices: Sequence[SiteChoice]

    def tried(self) -> set[int]:
        """Return the places to try: the sample, and those whose predicted error is unlike the others'."""
        errors = {place: self.choices[place].near(SHARE).error for place in self.places}
        middle = median(errors.values())
        unlike = {p for p, error in errors.items() if not middle / UNLIKE <= error <= middle * UNLIKE}
        return {*self.sample, *unlike}

    def scales(self, known: Mapping[int, float]) -> dict[int, float]:
        """Return the scale of each place: where it is not known, the median of the sample."""
        seen = [known[place] for place in self.sample if known[place] != UNKNOWN] or [UNKNOWN]
        typical = median(seen)
        return {place: known.get(place, typical) for place in self.places}


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
