"""Unit plans: turn the scores and costs of sites into a plan of the units to keep whose emitted file meets a budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fxprune.analysis import Analysis, Axis, Region, Units, analyze
from fxprune.analysis.sites import Site, find_sites
from fxprune.analysis.uniform import group_uniform
from fxprune.calibration import Calibration, Objective
from fxprune.calibration.processes import alone, from_first, is_first_process, is_splitting
from fxprune.cost.table import CostTable
from fxprune.errors import FxpruneError, RefusedError
from fxprune.ir import Program, Selection
from fxprune.rewrite.apply import apply
from fxprune.scores import SCORES, Evidence, Worth
from fxprune.scores.base import share_order
from fxprune.search.budget_search import Draft, Target, search_budget
from fxprune.search.cut_trials import running_trials, trial_setting
from fxprune.search.plans import (
    Option,
    SiteChoice,
    Tied,
    at_share,
    cheapest_error,
    flat_options,
    plan_frontier,
    same_share,
    selection_of,
)
from fxprune.search.probe import calibrated


@dataclass(frozen=True, eq=False)
class Planned:
    """Result of `plan`: the selection; and, as plain data for a report, the search, what each site keeps, and the meaning of errors."""

    selection: Selection
    details: Mapping[str, Any]


@dataclass(frozen=True)
class PlanRequest:
    """Options of `plan`: the score's name, the calibration data, the objective that gradients are of, and what may be decided.

    `hidden`: the width of residual streams may shrink. `layers`: residual branches may be removed. `uniform`: whole heads only, branches
    stay, and tied axes keep equally many units. `repair`: the re-fitting that will follow.
    `takes`: the axes and branches that may be decided about. `executor`: where trials of cuts run (None: here).
    """

    score: str
    data: Calibration | None
    objective: Objective = field(default_factory=Objective)
    hidden: bool = False
    layers: bool = True
    uniform: bool = False
    repair: str = "all"
    observe: Callable[[str], None] = lambda text: None
    takes: Callable[[Axis | Region], bool] = lambda part: True
    executor: Executor | None = None


def plan(program: Program, aim: Target, request: PlanRequest) -> Planned:
    """Find what each axis keeps so that the budget is met at the least error.

    Where several processes run this together (see `splitting`), all score, and the first one decides.
    RefusedError where nothing can be decided, or where even the smallest plan exceeds the budget.
    """
    if program.free_inputs:
        raise RefusedError(
            f"input {min(program.free_inputs)} may shrink, and data for it would not fit a candidate: plan with inputs that stay whole"
        )
    analysis = analyze(program)
    found = find_sites(analysis, request.hidden, request.takes)
    if request.uniform:
        found = _without_inside(found)
    if not found:
        raise RefusedError("no axis of this program can be decided by cost: see `fxprune explain`")
    request.observe(f"scoring {sum(len(site.axes) for site in found)} axes by {request.score}")
    worths = _worths(analysis, found, request)
    return _of_first(lambda: _sought(analysis, found, worths, aim, request))


def _sought(
    analysis: Analysis, found: Sequence[Site], worths: Mapping[str, Worth], aim: Target, request: PlanRequest
) -> Planned:
    """Return the plan that costs, trials and measurements lead to."""
    program = analysis.program
    choices = _choices(analysis, found, worths, aim, request)
    items = _tied(analysis, choices) if request.uniform else choices
    choices = [choice for item in items for choice in item.choices]
    found_plan = search_budget(program, aim, _UnitDrafts(program, items, request), request.observe)
    rows = [_row(choice, option) for choice, option in zip(choices, found_plan.draft.plan, strict=True)]
    details = {**found_plan.details(), "error_is": _error_is(request), "sites": rows}
    return Planned(selection_of(choices, found_plan.draft.plan), details)


def _of_first(make: Callable[[], Planned]) -> Planned:
    """Return the first process's plan in all processes that run together: measured times differ from one to the next."""
    if not is_splitting():
        return make()
    here, told = torch.device("cpu"), dict[str, Any]()
    if is_first_process():
        try:
            with alone():
                planned = make()
        except Exception as error:
            from_first(json.dumps({"refused": str(error)}).encode(), here)  # the others must not wait
            raise
        told = {"selection": planned.selection.to_json(), "details": planned.details}
        from_first(json.dumps(told).encode(), here)
        return planned
    told = json.loads(from_first(None, here) or b"{}")
    if "refused" in told:
        raise FxpruneError(told["refused"])
    return Planned(Selection.from_json(told["selection"]), told["details"])


def _error_is(request: PlanRequest) -> str:
    """Return the meaning of a plan's errors in words: the objective where they are scaled by probes, else the sum of the score."""
    if request.data is None or not SCORES[request.score].comparable:
        return f"sum of the score {request.score}"
    return request.objective.says


def _worths(analysis: Analysis, found: Sequence[Site], request: PlanRequest) -> dict[str, Worth]:
    asked = [Units(site.main) for site in found]
    asked += [Units(axis, site.main) for site in found for axis in site.inner]
    evidence = Evidence(analysis, request.data, request.objective)
    rated = SCORES[request.score].rate(evidence, asked)
    rated = share_order(analysis, rated) if request.uniform else rated
    return {units.axis.name: worth for units, worth in rated.items()}


def _choices(
    analysis: Analysis, found: Sequence[Site], worths: Mapping[str, Worth], aim: Target, request: PlanRequest
) -> list[SiteChoice]:
    costs = CostTable(analysis, aim.meter(), aim.point, odd=aim.measured)
    choices: list[SiteChoice] = []
    for i, site in enumerate(found):
        request.observe(f"costs of {site.main.name} ({i + 1} of {len(found)})")
        choices.append(SiteChoice(site, costs.of(site), worths))
    if request.data is None or not SCORES[request.score].comparable:
        return choices
    setting = trial_setting(analysis.program, request.data, request.objective, request.repair)
    with running_trials(setting, request.executor) as run:
        return calibrated(choices, request.layers, run, request.observe)


def _without_inside(found: Sequence[Site]) -> tuple[Site, ...]:
    """Return the sites without the axes inside heads, and without branches.

    The size of a head sets the scale of attention, and one number must hold for queries, keys and values.
    """
    return tuple(replace(site, inner=(), branch="") for site in found if site.main.role not in ("qk", "v"))


def _tied(analysis: Analysis, choices: Sequence[SiteChoice]) -> list[Tied]:
    by_name = {choice.site.main.name: choice for choice in choices}
    sets = group_uniform(analysis, [choice.site.main for choice in choices])
    return [Tied(tuple(by_name[axis.name] for axis in axes)) for axes in sets]


class _UnitDrafts:
    """Drafts of unit plans, for the budget search."""

    def __init__(self, program: Program, items: Sequence[SiteChoice | Tied], request: PlanRequest) -> None:
        self.program, self.items = program, items
        self.choices = [choice for item in items for choice in item.choices]
        self.decide = cheapest_error if SCORES[request.score].comparable else same_share
        self.whole = sum(choice.cost.whole for choice in self.choices)
        self.more = "" if request.hidden else ", or allow hidden=True"

    def draft(self, options: Sequence[Option]) -> Draft:
        """Return the draft of a plan with these options."""
        chosen = selection_of(self.choices, options)
        cost, error = (sum(getattr(option, name) for option in options) for name in ("cost", "error"))
        return Draft(cost, error, chosen.to_json(), lambda: apply(self.program, chosen), options)

    def within(self, cost: float) -> Draft | None:
        options = self.decide(self.items, cost)
        return None if options is None else self.draft(options)

    def least(self) -> Draft:
        if self.decide is same_share:
            return self.draft(at_share(self.items, 0))
        return self.draft(flat_options([item.cheapest() for item in self.items]))

    def frontier(self) -> list[tuple[float, float]]:
        return [] if self.decide is same_share else plan_frontier(self.items)


def _row(choice: SiteChoice, option: Option) -> dict[str, Any]:
    """Return what one site keeps, as plain data."""
    pairs = zip(choice.site.axes, option.counts, strict=False)
    axes = {axis.name: [count, axis.size] for axis, count in pairs}
    gone = {"removed": choice.site.branch} if not option.counts else {}
    return {"site": choice.site.main.name, "axes": axes, **gone, "cost": option.cost, "error": option.error}
