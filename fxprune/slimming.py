"""Slim to a budget: score, cost, plan, measure, and plan again until the emitted file keeps to it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fxprune.analysis import Analysis, analyze
from fxprune.budget import BUDGETS, Clock, Meter, counted, written
from fxprune.bypass import apply
from fxprune.calibration import Calibration
from fxprune.costs import Costs
from fxprune.errors import RefusedError
from fxprune.objective import Objective
from fxprune.planner import Choice, Option, at_share, cheapest_error, selection, uniform
from fxprune.points import Point, feeds
from fxprune.probe import Probe
from fxprune.program import Program
from fxprune.runtimes import measure
from fxprune.score import SCORES, Evidence, Worth
from fxprune.selection import Selection
from fxprune.sites import Site, sites
from fxprune.units import Units

TRIES = 5
"""Plans that are emitted and measured before the best of them is taken."""

ROOM = 0.99
"""A measured plan should lie this far below its budget, for the next measurement will not be the same."""

CLOSE = 0.95
"""A plan that lies below this share of its budget gives away more than it must."""


SECONDS_A_PLAN = 3.0
"""How long the original and a plan are timed, taking turns."""


@dataclass(frozen=True)
class Aim:
    """What is to be reached: a budget's name, the share of it that may be left, the point that it is meant at, a clock for latencies."""

    budget: str
    share: float
    point: Point
    clock: Clock

    @property
    def measured(self) -> bool:
        """Whether the figure comes from a clock, and not from a count."""
        return BUDGETS[self.budget].count is None

    def meter(self) -> Meter:
        """How parts are costed."""
        return self.clock if self.measured else counted(self.budget)


class Scale:
    """Weighs whole programs against the original: by a count, or by emitting both and timing them in turns."""

    def __init__(self, program: Program, aim: Aim, folder: Path) -> None:
        self.aim, self.folder, self.program = aim, folder, program
        count = BUDGETS[aim.budget].count
        self.count = None if count is None else lambda one: float(count(one, aim.point))
        self.before = None if count else written(program, folder / "original", aim.clock.settings)
        self.total = self.count(program) if self.count else self._timed({"original": self.before})["original"]

    def share(self, slim: Program) -> float:
        """What is left of the original's figure."""
        if self.count:
            return self.count(slim) / self.total
        after = written(slim, self.folder / "plan", self.aim.clock.settings)
        times = self._timed({"original": self.before, "plan": after})
        after.unlink()
        return times["plan"] / times["original"]

    def _timed(self, files: Mapping[str, Any]) -> dict[str, float]:
        given = dict.fromkeys(files, feeds(self.program, self.aim.point))
        timed = measure(files, given, self.aim.clock.settings, SECONDS_A_PLAN)
        return {name: timing.median for name, timing in timed.items()}


@dataclass(frozen=True)
class Trial:
    """A plan that was tried: what the cost table said, and what the emitted file showed, as shares of the original."""

    predicted: float
    measured: float
    error: float


@dataclass(frozen=True, eq=False)
class Planned:
    """The selection, the trials that led there, what each site keeps as plain data, and the share that is left."""

    selection: Selection
    trials: tuple[Trial, ...] = ()
    sites: tuple[Mapping[str, Any], ...] = ()
    factor: float = 1.0
    share: float = 1.0

    def details(self) -> dict[str, Any]:
        """For a report."""
        trials = [asdict(trial) for trial in self.trials]
        return {
            "trials": trials,
            "sites": [dict(site) for site in self.sites],
            "factor": self.factor,
            "share": self.share,
        }


@dataclass(frozen=True)
class Request:
    """How to decide: the score's name, the calibration data, what gradients are of, and what may be decided."""

    score: str
    data: Calibration | None
    objective: Objective = field(default_factory=Objective)
    hidden: bool = False
    layers: bool = True
    repair: str = "all"
    observe: Callable[[str], None] = lambda text: None


def plan(program: Program, aim: Aim, request: Request) -> Planned:
    """What each axis keeps so that the budget is met at the least error.

    RefusedError where nothing can be decided, or where even the smallest plan exceeds the budget.
    """
    analysis = analyze(program)
    found = sites(analysis, request.hidden)
    if not found:
        raise RefusedError("no axis of this program can be decided by cost: see `fxprune explain`")
    request.observe(f"scoring {sum(len(site.axes) for site in found)} axes by {request.score}")
    worths = _worths(analysis, found, request)
    choices = _choices(analysis, found, worths, aim, request)
    with tempfile.TemporaryDirectory(prefix="fxprune-plan-") as folder:
        request.observe("measuring the original")
        return _Search(choices, Scale(program, aim, Path(folder)), request).run()


def _worths(analysis: Analysis, found: Sequence[Site], request: Request) -> dict[str, Worth]:
    asked = [Units(site.main) for site in found]
    asked += [Units(axis, site.main) for site in found for axis in site.inner]
    evidence = Evidence(analysis, request.data, request.objective)
    return {units.axis.name: worth for units, worth in SCORES[request.score].rate(evidence, asked).items()}


def _choices(
    analysis: Analysis, found: Sequence[Site], worths: Mapping[str, Worth], aim: Aim, request: Request
) -> list[Choice]:
    costs = Costs(analysis, aim.meter(), aim.point, odd=aim.measured)
    choices: list[Choice] = []
    for i, site in enumerate(found):
        request.observe(f"costs of {site.main.name} ({i + 1} of {len(found)})")
        choices.append(Choice(site, costs.of(site), worths))
    if request.data is None or not SCORES[request.score].comparable:
        return choices
    probe = Probe(analysis, request.data, request.objective, request.repair, request.observe)
    return probe.calibrated(choices, request.layers)


class _Search:
    """Plans for a budget.

    Costs of sites don't add up to that of the whole: caches are warmer in a small file, and sites of a convolutional net share
    nodes. One plan, everything halved, is measured as a whole; `factor` is what it saves over what the table says.
    """

    def __init__(self, choices: Sequence[Choice], scale: Scale, request: Request) -> None:
        self.choices, self.scale, self.request = choices, scale, request
        self.decide = cheapest_error if SCORES[request.score].comparable else uniform
        self.whole = sum(choice.cost.whole for choice in choices)
        self.factor = self._factor()

    @property
    def rest(self) -> float:
        """The cost of what nothing decides about."""
        return self.scale.total - self.factor * self.whole

    def predicted(self, options: Sequence[Option]) -> float:
        """The share that is left by the table."""
        return (self.rest + self.factor * sum(option.cost for option in options)) / self.scale.total

    def run(self) -> Planned:
        """Plan and weigh until a plan keeps to the budget and gives little away."""
        aim, trials, seen = self.scale.aim, list[Trial](), set[str]()
        best: tuple[tuple[bool, float], Selection, list[Option]] | None = None
        allowed, room = aim.share, ROOM if aim.measured else 1.0
        for _ in range(TRIES):
            options = self.decide(self.choices, (allowed * self.scale.total - self.rest) / self.factor)
            if options is None:
                break
            chosen = selection(self.choices, options)
            if chosen.to_json() in seen:
                break
            seen.add(chosen.to_json())
            trials.append(self._tried(chosen, options, len(trials)))
            share = trials[-1].measured
            safe = share <= aim.share * room
            if share <= aim.share and (best is None or (safe, share) > best[0]):
                best = (safe, share), chosen, options
            if safe and share >= aim.share * CLOSE:
                break
            allowed += aim.share * (CLOSE + room) / 2 - share
        chosen, options = best[1:] if best else self._smallest(trials)
        rows = tuple(_row(choice, option) for choice, option in zip(self.choices, options, strict=True))
        share = best[0][1] if best else trials[-1].measured
        return Planned(chosen, tuple(trials), rows, self.factor, share)

    def _tried(self, chosen: Selection, options: Sequence[Option], place: int) -> Trial:
        predicted = self.predicted(options)
        self.request.observe(f"plan {place + 1}: predicted {predicted:.3f} of the original, measuring")
        share = self.scale.share(apply(self.scale.program, chosen))
        return Trial(predicted, share, sum(option.error for option in options))

    def _factor(self) -> float:
        self.request.observe("validating the cost table against the whole model")
        halves = [at_share(choice, 0.5) for choice in self.choices]
        said = self.whole - sum(option.cost for option in halves)
        share = self.scale.share(apply(self.scale.program, selection(self.choices, halves)))
        saved = (1 - share) * self.scale.total
        return saved / said if said > 0 and saved > 0 else 1.0

    def _smallest(self, trials: list[Trial]) -> tuple[Selection, list[Option]]:
        """The smallest of everything, where the table knows nothing better; RefusedError where that exceeds the budget."""
        options = [
            at_share(choice, 0) if self.decide is uniform else min(choice.options(), key=lambda o: o.cost)
            for choice in self.choices
        ]
        chosen = selection(self.choices, options)
        trials.append(self._tried(chosen, options, len(trials)))
        if trials[-1].measured > self.scale.aim.share:
            raise RefusedError(self._missed(trials[-1].measured))
        return chosen, options

    def _missed(self, least: float) -> str:
        aim = self.scale.aim
        more = "" if self.request.hidden else ", or allow hidden=True"
        return (
            f"{aim.budget}={aim.share:g} can't be reached: with the smallest of everything that may go, {least:.3f} of the"
            f" {aim.budget} is left; ask for more{more}"
        )


def _row(choice: Choice, option: Option) -> dict[str, Any]:
    """What one site keeps."""
    axes = {
        axis.name: [count, axis.size] for axis, count in zip(choice.site.axes, option.counts, strict=False)
    }
    gone = {"removed": choice.site.branch} if not option.counts else {}
    return {"site": choice.site.main.name, "axes": axes, **gone, "cost": option.cost, "error": option.error}
