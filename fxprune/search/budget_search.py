"""Budget search: draft plans from a cost table, measure (or count) each as a whole, and draft anew until one meets its budget."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fxprune.cost import BUDGETS, Clock
from fxprune.cost.budgets import Meter, counting_meter
from fxprune.cost.latency import write_program
from fxprune.errors import RefusedError
from fxprune.ir import Point, Program, feeds
from fxprune.runtimes import measure

TRIES = 3
"""Number of plans that are measured before one that is NEAR the budget is taken: of a large model, each takes a minute."""

MOST_TRIES = 5
"""Maximum number of plans that are measured before the best of them is taken."""

NEAR = 0.94
"""A plan above this share of its budget is near it."""

ROOM = 0.99
"""A measured plan should not exceed this share of its budget, since measurements vary."""

CLOSE = 0.97
"""A plan below this share of its budget removes more than necessary."""

INSIDE = 0.1
"""Least distance of the next plan from either of two on both sides of a budget, as a share of the way between them."""

SECONDS_A_PLAN = 4.0
"""Seconds for which the original and a plan are timed, in turns."""


@dataclass(frozen=True)
class Target:
    """Target of a search: a budget's name, the share of it that may be left, the point that it applies to, a clock for latencies."""

    budget: str
    share: float
    point: Point
    clock: Clock

    @property
    def measured(self) -> bool:
        """Whether the figure comes from a clock, and not from a count."""
        return BUDGETS[self.budget].count is None

    def meter(self) -> Meter:
        """Return the meter that gives the costs of parts."""
        return self.clock if self.measured else counting_meter(self.budget)


class Comparison:
    """Comparison of whole programs with the original: by a count, or by emitting both and timing them in turns."""

    def __init__(self, program: Program, aim: Target, folder: Path) -> None:
        self.aim, self.folder, self.program = aim, folder, program
        count = BUDGETS[aim.budget].count
        self.count = None if count is None else lambda one: float(count(one, aim.point))
        self.before = None if count else write_program(program, folder / "original", aim.clock.settings)
        self.total = self.count(program) if self.count else self._timed({"original": self.before})["original"]

    def share(self, slim: Program) -> float:
        """Return the share of the original's figure that is left."""
        if self.count:
            return self.count(slim) / self.total
        after = write_program(slim, self.folder / "plan", self.aim.clock.settings)
        times = self._timed({"original": self.before, "plan": after})
        after.unlink()
        return times["plan"] / times["original"]

    def _timed(self, files: Mapping[str, Any]) -> dict[str, float]:
        given = dict.fromkeys(files, feeds(self.program, self.aim.point))
        timed = measure(files, given, self.aim.clock.settings, SECONDS_A_PLAN)
        return {name: timing.median for name, timing in timed.items()}


def share_left(original: Program, program: Program, aim: Target) -> float:
    """Return the share of the original's figure that a program that was cut before has left."""
    with tempfile.TemporaryDirectory() as folder:
        return Comparison(original, aim, Path(folder)).share(program)


@dataclass(frozen=True, eq=False)
class Draft:
    """Plan: its cost by the table, its error, a text equal for equal plans, a function that makes its program, and its choices."""

    cost: float
    error: float
    key: str
    make: Callable[[], Program]
    plan: Any


class Drafts(Protocol):
    """Source of plans for the search."""

    @property
    def whole(self) -> float:
        """Cost, by the table, of all that is decided about, before anything is removed."""

    @property
    def more(self) -> str:
        """End of a refusal, in words: what could be allowed besides."""

    def within(self, cost: float) -> Draft | None:
        """Return the plan of least error that costs at most this much; None where there is none."""

    def least(self) -> Draft:
        """Return the plan that costs least."""

    def frontier(self) -> list[tuple[float, float]]:
        """Return the (cost, error) of the best plans for budgets of all sizes; empty where errors can't be added up."""


@dataclass(frozen=True)
class Trial:
    """Plan that was tried: the share of the original that is left by the cost table and as measured (or counted), and the error."""

    predicted: float
    measured: float
    error: float


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Result of a search: the draft that meets the budget, the trials that led there, and the share that is left.

    `factor` is the saving of the whole model over that by the table, in this plan. `frontier` are the best plans for other budgets, as
    (predicted share, error).
    """

    aim: Target
    draft: Draft
    trials: tuple[Trial, ...]
    factor: float
    share: float
    frontier: tuple[tuple[float, float], ...] = ()

    def details(self) -> dict[str, Any]:
        """Return the budget, the trials, the frontier, the factor and the share as plain data, for a report."""
        return {
            "budget": self.aim.budget,
            "target": self.aim.share,
            "trials": [asdict(trial) for trial in self.trials],
            "frontier": [{"share": share, "error": error} for share, error in self.frontier],
            "factor": self.factor,
            "share": self.share,
        }


def search_budget(
    program: Program, aim: Target, drafts: Drafts, observe: Callable[[str], None]
) -> SearchResult:
    """Find the draft of least error that, as a whole, meets the budget; RefusedError where even the smallest exceeds it."""
    with tempfile.TemporaryDirectory(prefix="fxprune-plan-") as folder:
        observe("measuring the original")
        return _Search(drafts, Comparison(program, aim, Path(folder)), observe).run()


class _Search:
    """Search for a plan that meets a budget.

    Costs of parts don't add up to that of the whole: caches are warmer in a small file, and parts of a convolutional net share
    nodes. `factor` is the saving of the last plan, measured as a whole, over that by the table.
    """

    def __init__(self, drafts: Drafts, scale: Comparison, observe: Callable[[str], None]) -> None:
        self.drafts, self.scale, self.observe = drafts, scale, observe
        self.factor = 1.0
        self.trials: list[Trial] = []

    def predicted(self, cost: float) -> float:
        """Return the share of the original that is left where all that is decided about costs this much by the table."""
        return 1 - self.factor * (self.drafts.whole - cost) / self.scale.total

    def run(self) -> SearchResult:
        """Draft and measure until a plan meets the budget and removes little more than necessary."""
        aim, seen = self.scale.aim, set[str]()
        best: tuple[tuple[bool, float], Draft] | None = None
        room = ROOM if aim.measured else 1.0
        goal = aim.share * (CLOSE + room) / 2
        tried = [(self.drafts.whole, 1.0)]
        cost = self.drafts.whole - (1 - goal) * self.scale.total
        for place in range(MOST_TRIES):
            draft = self.drafts.within(cost) or self.drafts.least()
            near = aim.measured and best is not None and best[0] >= (True, aim.share * NEAR)
            if draft.key in seen or (near and place >= TRIES):
                break
            seen.add(draft.key)
            share = self._measured(draft)
            safe = share <= aim.share * room
            if share <= aim.share and (best is None or (safe, share) > best[0]):
                best = (safe, share), draft
            if safe and share >= aim.share * CLOSE:
                break
            tried.append((draft.cost, share))
            cost = _next(tried, goal, 1 / self.scale.total)
        draft = best[1] if best else self._least(seen)
        share = best[0][1] if best else self.trials[-1].measured
        self._learn(draft, share)
        frontier = tuple((self.predicted(cost), error) for cost, error in self.drafts.frontier())
        return SearchResult(aim, draft, tuple(self.trials), self.factor, share, frontier)

    def _measured(self, draft: Draft) -> float:
        """Measure a draft as a whole, which tells the factor of the next."""
        predicted = self.predicted(draft.cost)
        self.observe(f"plan {len(self.trials) + 1}: predicted {predicted:.3f} of the original, measuring")
        share = self.scale.share(draft.make())
        self.trials.append(Trial(predicted, share, draft.error))
        self._learn(draft, share)
        return share

    def _learn(self, draft: Draft, share: float) -> None:
        """Set the factor to what a measured draft tells."""
        said = self.drafts.whole - draft.cost
        saved = (1 - share) * self.scale.total
        self.factor = saved / said if said > 0 and saved > 0 else 1.0

    def _least(self, seen: set[str]) -> Draft:
        """Try and return the plan that costs least, where no other meets the budget; RefusedError where it exceeds the budget, too."""
        draft = self.drafts.least()
        if draft.key not in seen:
            self._measured(draft)
        least = min(trial.measured for trial in self.trials)
        if self.trials[-1].measured > self.scale.aim.share:
            raise RefusedError(self._missed(least))
        return draft

    def _missed(self, least: float) -> str:
        aim = self.scale.aim
        return (
            f"{aim.budget}={aim.share:g} can't be reached: with the smallest of everything that may go, {least:.3f} of the"
            f" {aim.budget} is left; ask for more{self.drafts.more}"
        )


def _next(tried: Sequence[tuple[float, float]], goal: float, slope: float) -> float:
    """Return the cost to draft next, from (cost, measured share) so far, the original first.

    With a plan below the goal it is interpolated between the nearest on both sides, else extrapolated from the original through the last.
    The slope of the table (share by cost), which is taken where nothing was saved, is not that of the measurements: moving by what a plan
    missed would oscillate around a goal where these fall steeply.
    """
    under = max((each for each in tried if each[1] <= goal), key=lambda each: each[1], default=None)
    over = min((each for each in tried if each[1] > goal), key=lambda each: each[1])
    if under is None:
        (whole, _), (cost, share) = tried[0], tried[-1]
        seen = (1 - share) / (whole - cost) if share < 1 and cost < whole else slope
        return cost - (share - goal) / seen
    way = (goal - under[1]) / (over[1] - under[1])
    return under[0] + min(max(way, INSIDE), 1 - INSIDE) * (over[0] - under[0])
