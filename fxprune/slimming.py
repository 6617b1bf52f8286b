"""Slim to a budget: score, cost, plan, measure, and plan again until the emitted file keeps to it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fxprune.analysis import Analysis, analyze
from fxprune.budget import BUDGETS, Clock, Meter, counted, written
from fxprune.bypass import apply, bypassed
from fxprune.calibration import Calibration, flat
from fxprune.costs import Costs
from fxprune.errors import RefusedError
from fxprune.objective import Objective
from fxprune.planner import Choice, Option, at_share, cheapest_error, selection, uniform
from fxprune.points import Point, feeds
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

ROWS_WITHOUT = 32
"""Rows on which the outputs without a branch are compared."""


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
    """The selection, the trials that led there, and what each site keeps, as plain data."""

    selection: Selection
    trials: tuple[Trial, ...] = ()
    sites: tuple[Mapping[str, Any], ...] = ()
    factor: float = 1.0

    def details(self) -> dict[str, Any]:
        """For a report."""
        trials = [asdict(trial) for trial in self.trials]
        return {"trials": trials, "sites": [dict(site) for site in self.sites], "factor": self.factor}


@dataclass(frozen=True)
class Request:
    """How to decide: the score's name, the calibration data, what gradients are of, and what may be decided."""

    score: str
    data: Calibration | None
    objective: Objective = field(default_factory=Objective)
    hidden: bool = False
    layers: bool = True
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
    gone = _without(analysis, found, request) if request.layers and SCORES[request.score].comparable else {}
    choices: list[Choice] = []
    for i, site in enumerate(found):
        request.observe(f"costs of {site.main.name} ({i + 1} of {len(found)})")
        choices.append(Choice(site, costs.of(site), worths, gone.get(site.branch)))
    return choices


def _without(analysis: Analysis, found: Sequence[Site], request: Request) -> dict[str, float]:
    """How far the outputs move without each branch that holds one site, on a few rows."""
    names = [site.branch for site in found if site.branch]
    if not names or request.data is None:
        return {}
    batches = _few(request.data)
    outputs = [_run(analysis.program, batch) for batch in batches]
    found_: dict[str, float] = {}
    for i, name in enumerate(names):
        request.observe(f"without {name} ({i + 1} of {len(names)})")
        candidate = bypassed(analysis, [name])
        gaps = [
            request.objective.gap(output, _run(candidate, batch), batch)
            for batch, output in zip(batches, outputs, strict=True)
        ]
        found_[name] = sum(gaps) / len(gaps)
    return found_


def _few(data: Calibration) -> list[dict[str, torch.Tensor]]:
    """Batches spread over the data, of about ROWS_WITHOUT rows in all, but more than one where there are more."""
    count = max(2, round(ROWS_WITHOUT * len(data.batches) / max(1, data.rows)))
    step = max(1, len(data.batches) // count)
    return list(data.batches[::step][:count])


def _run(program: Program, batch: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        return torch.fx.Interpreter(program.graph).run(*flat(program, batch), enable_io_processing=False)


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
        aim, trials = self.scale.aim, list[Trial]()
        best: tuple[tuple[bool, float], Selection, list[Option]] | None = None
        allowed, room = aim.share, ROOM if aim.measured else 1.0
        for _ in range(TRIES):
            options = self.decide(self.choices, (allowed * self.scale.total - self.rest) / self.factor)
            if options is None:
                break
            chosen = selection(self.choices, options)
            trials.append(self._tried(chosen, options, len(trials)))
            share = trials[-1].measured
            safe = share <= aim.share * room
            if share <= aim.share and (best is None or (safe, share) > best[0]):
                best = (safe, share), chosen, options
            if safe and share >= aim.share * CLOSE:
                break
            allowed += aim.share * (CLOSE + room) / 2 - share
        if best is None:
            raise RefusedError(self._missed(trials))
        rows = tuple(_row(choice, option) for choice, option in zip(self.choices, best[2], strict=True))
        return Planned(best[1], tuple(trials), rows, self.factor)

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

    def _missed(self, trials: Sequence[Trial]) -> str:
        aim = self.scale.aim
        least = self.predicted([min(choice.options(), key=lambda o: o.cost) for choice in self.choices])
        shown = f"; the last plan measured {trials[-1].measured:.2f}" if trials else ""
        return (
            f"{aim.budget}={aim.share:g} can't be reached: with the smallest of everything that may go, {least:.2f} of the"
            f" {aim.budget} is left ({self.rest / self.scale.total:.2f} is what nothing decides about){shown}; ask for more, or"
            " allow hidden=True"
        )


def _row(choice: Choice, option: Option) -> dict[str, Any]:
    """What one site keeps."""
    axes = {
        axis.name: [count, axis.size] for axis, count in zip(choice.site.axes, option.counts, strict=False)
    }
    gone = {"removed": choice.site.branch} if not option.counts else {}
    return {"site": choice.site.main.name, "axes": axes, **gone, "cost": option.cost, "error": option.error}
