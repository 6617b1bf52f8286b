"""Layer search: choose the regions to remove, greedily (Greedy-layer Pruning, arXiv 2105.14839), in one shot or exhaustively.

A `Rater` scores the program without each of some candidates, given what is removed already; higher is better, ties go to the
candidate that stands last. Evaluators that train are the paper's own setting: every candidate begins with the program's own weights.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from fxprune.errors import SelectionError
from fxprune.search.layer_scores import BlockInfluenceRater, EvaluationRater, LastLayersRater

CountEvaluations: TypeAlias = Callable[[int, int, float], None]
"""Called after each evaluation with the number done, the total, and an estimate of the seconds that the rest will take."""


class Rater(Protocol):
    """Scorer of candidates: the quality of the program without `removed` and one candidate."""

    def rate(self, removed: Sequence[str], candidates: Sequence[str]) -> list[float]:
        """Return one score per candidate, in their order."""


@dataclass(frozen=True)
class LayerSearchResult:
    """Result of a search: the regions to remove, in order, their scores, and the number of evaluations that it requested.

    A greedy search yields a nested family: the first k of `order` are its answer for k. `scores` are those after each removal (greedy), of
    each region alone (oneshot) or of the whole set (exhaustive); `ratings` are all scores, by round.
    """

    order: tuple[str, ...]
    scores: tuple[float, ...]
    evaluations: int
    ratings: tuple[dict[str, float], ...] = ()


def greedy(rater: Rater, candidates: Sequence[str], count: int) -> LayerSearchResult:
    """Remove the best, rate the rest given what is removed, and so on: nL − n(n−1)/2 ratings for n of L."""
    removed: list[str] = []
    rounds: list[dict[str, float]] = []
    while len(removed) < count:
        left = [name for name in candidates if name not in removed]
        rounds.append(dict(zip(left, rater.rate(removed, left), strict=True)))
        removed.append(_best(rounds[-1]))
    scores = tuple(ratings[name] for name, ratings in zip(removed, rounds, strict=True))
    return LayerSearchResult(tuple(removed), scores, sum(map(len, rounds)), tuple(rounds))


def oneshot(rater: Rater, candidates: Sequence[str], count: int) -> LayerSearchResult:
    """Rate each candidate alone, and remove those whose removal scores best."""
    ratings = dict(zip(candidates, rater.rate([], candidates), strict=True))
    place = {name: i for i, name in enumerate(candidates)}
    order = sorted(candidates, key=lambda name: (_number(ratings[name]), place[name]), reverse=True)[:count]
    return LayerSearchResult(tuple(order), tuple(ratings[name] for name in order), len(ratings), (ratings,))


def exhaustive(rater: Rater, candidates: Sequence[str], count: int) -> LayerSearchResult:
    """Rate every set of `count` candidates, for small cases; the order within the answer is that of the candidates."""
    ratings: dict[tuple[str, ...], float] = {}
    for first in itertools.combinations(candidates, count - 1):
        rest = candidates[candidates.index(first[-1]) + 1 :] if first else list(candidates)
        scored = zip(rest, rater.rate(first, rest), strict=True) if rest else ()
        ratings |= {(*first, last): score for last, score in scored}
    best = _best(ratings)
    named = {" + ".join(names): score for names, score in ratings.items()}
    return LayerSearchResult(best, (ratings[best],) * count, len(ratings), (named,))


#: name: (the search, what it does)
SEARCHES: dict[str, tuple[Callable[[Rater, Sequence[str], int], LayerSearchResult], str]] = {
    "greedy": (greedy, "remove the best, rate the rest given what is gone, and so on"),
    "oneshot": (oneshot, "rate each alone, remove those that are missed least"),
    "exhaustive": (exhaustive, "rate every set of that size"),
}


def _best(ratings: dict[Any, float]) -> Any:
    """Return the key of the highest score; of equal ones the last."""
    place = {name: i for i, name in enumerate(ratings)}
    return max(ratings, key=lambda name: (_number(ratings[name]), place[name]))


def _number(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def search_layers(
    name: str,
    rater: EvaluationRater | BlockInfluenceRater | LastLayersRater,
    candidates: Sequence[str],
    count: int,
    progress: CountEvaluations | None = None,
    others: int = 0,
) -> LayerSearchResult:
    """Run a search of the table SEARCHES; SelectionError unless `count` ≥ 1 and one stays, of the candidates or of `others`."""
    if not 1 <= count < len(candidates) + min(others, 1):
        raise SelectionError(
            f"{count} of {len(candidates)} regions can't go: at least one must go and one must stay"
        )
    if progress:
        rater.observe = _ProgressEstimate(name, len(candidates), count, progress)
    return SEARCHES[name][0](rater, candidates, count)


class _ProgressEstimate:
    """Counter of evaluations that estimates the time left from those that were not in a journal, however many run at once."""

    def __init__(self, name: str, size: int, count: int, progress: CountEvaluations) -> None:
        self.total = {
            "greedy": size * count - count * (count - 1) // 2,
            "oneshot": size,
            "exhaustive": math.comb(size, count),
        }[name]
        self.done, self.timed, self.progress = 0, 0, progress
        self.start = time.perf_counter()

    def __call__(self, seconds: float) -> None:
        self.done += 1
        self.timed += seconds > 0
        spent = time.perf_counter() - self.start
        self.progress(self.done, self.total, (self.total - self.done) * spent / max(1, self.timed))
