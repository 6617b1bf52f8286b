"""Error calibration: scale the errors that scores predict to the measured change of the outputs, on a few rows, site by site.

A score treats one reader at a time and rows as independent; where errors of neighbouring places are alike (images), it is far too low. One
cut of a site is tried, its readers are re-fitted, and all errors of the site are scaled by the ratio of measured to predicted error. Of
many sites that compute the same, as the layers of a deep network do, some are tried, and those whose predicted error is unlike the others';
the rest have the median ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from fxprune.search.cut_trials import CutTrial, RunTrials
from fxprune.search.plans import SiteChoice, selection_of

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


def calibrated(
    choices: Sequence[SiteChoice], branches: bool, run: RunTrials, observe: Callable[[str], None]
) -> list[SiteChoice]:
    """Return the choices with their errors scaled, and with `branches` also with the error without their branch."""
    kinds = [_Alike(places, _spread(places), choices) for places in _alike(choices)]
    tried = sorted(place for kind in kinds for place in kind.tried())
    cuts = {place: cut for place in tried if (cut := _cut(choices[place])) is not None}
    texts = [
        f"probing {choices[place].site.main.name} ({i} of {len(cuts)})" for i, place in enumerate(cuts, 1)
    ]
    found = dict(
        zip(cuts, _announced(run([trial for trial, _ in cuts.values()]), texts, observe), strict=True)
    )
    known = {place: _scale(found[place], cuts[place][1]) if place in cuts else UNKNOWN for place in tried}
    scales = {place: scale for kind in kinds for place, scale in kind.scales(known).items()}
    gone = _without_branches(choices, run, observe) if branches else {}
    return [replace(choice, gone=gone.get(i), scale=scales[i]) for i, choice in enumerate(choices)]


def _without_branches(
    choices: Sequence[SiteChoice], run: RunTrials, observe: Callable[[str], None]
) -> dict[int, float | None]:
    """Return the error without the branch of each site that has one, by place."""
    places = [i for i, choice in enumerate(choices) if choice.site.branch]
    trials = [CutTrial(branch=choices[i].site.branch) for i in places]
    texts = [f"probing the branch of {choices[i].site.main.name}" for i in places]
    return dict(zip(places, _announced(run(trials), texts, observe), strict=True))


def _announced(
    gaps: Iterator[float | None], texts: Sequence[str], observe: Callable[[str], None]
) -> Iterator[float | None]:
    """Yield the gaps, each announced before it is waited for."""
    for text in texts:
        observe(text)
        yield next(gaps)


def _cut(choice: SiteChoice) -> tuple[CutTrial, float] | None:
    """Return the trial of a site's cut, and the error that its scores predict; None where nothing would be cut, or at no error."""
    option = choice.near(SHARE)
    chosen = selection_of([choice], [option])
    return (CutTrial(chosen.to_json()), option.error) if len(chosen) and option.error > 0 else None


def _scale(found: float | None, predicted: float) -> float:
    return UNKNOWN if found is None else min(max(found / predicted, 1 / TRUST), TRUST)


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
