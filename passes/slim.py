"""Pruning to a budget: all kinds of units at once, to a share of the latency, FLOPs, parameters or bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from fxprune.analysis import Analysis, Axis, analyze
from fxprune.analysis.sites import find_sites
from fxprune.calibration import Calibration
from fxprune.calibration.objective import DISTANCES
from fxprune.calibration.processes import agreed
from fxprune.calibration.repair import Repaired, check_repair, repair, unknown_repair
from fxprune.cost import BUDGETS
from fxprune.ir import Point, Program, Selection
from fxprune.passes.recover import Recover
from fxprune.pipeline import EMPTY, Context, Measuring, Outcome, Pass, require
from fxprune.rewrite.apply import apply
from fxprune.scores import SCORES
from fxprune.search.budget_search import Target, share_left
from fxprune.search.cut_trials import check_picklable
from fxprune.search.unit_plans import Planned, PlanRequest, plan


@dataclass(frozen=True)
class Slim(Measuring):
    """Remove heads, their dims, neurons, channels and branches until a share of latency (flops, params, bytes) is left; re-fit the rest."""

    name: ClassVar[str] = "slim"
    splits: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("data", "loss", "settings", "point", "cache", "seed", "executor")

    latency: float = 0.0  #: the share of the measured time that may be left: 0.5 is twice as fast
    flops: float = 0.0  #: or of the operations
    params: float = 0.0  #: or of the parameters
    bytes: float = 0.0  #: or of the bytes
    score: str = "obs"  #: what decides which units stay
    repair: str = "all"  #: none, mean, readers or all: which matrices are re-fitted; more behind a plus, as in all+logits
    distance: str = "square"  #: square or divergence (for logits): what is kept small where no loss is given
    hidden: bool = False  #: whether the width of the residual stream may shrink, too
    layers: bool = True  #: whether whole residual branches may go
    uniform: bool = False  #: equally many whole heads, neurons or channels in all layers; branches stay
    rounds: int = 1  #: cuts in which the budget is reached, with a recovery between them
    between: float = 2.0  #: minutes of each of these recoveries
    whole: bool = False  #: whether the share is of the program that the pipeline began with, not of what earlier passes left

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in BUDGETS if getattr(self, name)}
        require(len(given) == 1, f"say one of {', '.join(BUDGETS)}, as in slim(latency=0.5)")
        name, share = next(iter(given.items()))
        require(0 < share < 1, f"{name} is the share that may be left, between 0 and 1, got {share:g}")
        for option, table in (("score", SCORES), ("distance", DISTANCES)):
            value = getattr(self, option)
            require(value in table, f"{option} must be one of {', '.join(table)}, got {value!r}")
        require(self.rounds >= 1, f"rounds must be at least 1, got {self.rounds}")
        require(self.between > 0, f"between must be above 0 minutes, got {self.between:g}")
        unknown = unknown_repair(self.repair)
        require(not unknown, unknown)
        super().__post_init__()

    def needs(self) -> Mapping[str, str]:
        wants = SCORES[self.score].needs_data or self.repair != "none"
        return {"data": "slim(…, score='magnitude', repair='none')"} if wants else {}

    def expanded(self) -> tuple[Pass, ...]:
        """Return the rounds as passes: each leaves the same share of what the one before left, with a recovery between two."""
        if self.rounds == 1:
            return (self,)
        name = next(name for name in BUDGETS if getattr(self, name))
        shares = [getattr(self, name) ** (i / self.rounds) for i in range(1, self.rounds + 1)]
        cuts = [replace(self, **{name: share}, rounds=1, between=2.0, whole=True) for share in shares]
        return tuple(each for cut in cuts for each in (Recover(minutes=self.between), cut))[1:]

    def target(self, program: Program, context: Context = EMPTY) -> Target:
        """Return the budget, at the point and with the settings of the options; UsageError where the runtime is not available."""
        name = next(name for name in BUDGETS if getattr(self, name))
        clock = context.clock(self.settings(context), BUDGETS[name].count is None)
        aim = Target(name, getattr(self, name), self.point(program, context), clock)
        if not self.whole or context.original in (None, program):
            return aim
        assert context.original is not None
        return replace(aim, share=agreed(aim.share / share_left(context.original, program, aim)))

    def points(self, program: Program, context: Context = EMPTY) -> list[Point]:
        return [self.point(program, context)] if self.latency else []

    def decide(self, program: Program, context: Context = EMPTY, aim: Target | None = None) -> Planned:
        """Return the plan for a target (None: that of the options), with the trials; UsageError where calibration data are absent."""
        self.check(context)
        scope = self.scope(analyze(program))
        request = PlanRequest(
            self.score,
            context.calibration(program),
            context.objective(self.distance),
            hidden=self.hidden or "hidden" in self.wanted(),
            layers=self.layers and not self.uniform,
            uniform=self.uniform,
            repair=self.repair,
            observe=context.say,
            takes=scope.takes,
            executor=context.executor,
        )
        return plan(program, aim or self.target(program, context), request)

    def plan(self, program: Program, context: Context = EMPTY) -> Selection:
        return self.decide(program, context).selection

    def check_data(self, program: Program, context: Context) -> None:
        check_repair(program, context.calibration(program), self.repair)
        check_picklable(context.objective(self.distance), context.executor)

    def run(self, program: Program, context: Context = EMPTY) -> Outcome:
        context = context.checked(program)
        self.check_data(program, context)
        data = context.calibration(program)
        aim = self.target(program, context)
        if aim.share >= 1:
            return Outcome(program, Selection(), (), {"share": 1.0})
        planned = self.decide(program, context, aim)
        slim = apply(program, planned.selection)
        if data is None:
            return Outcome(slim, planned.selection, (), planned.details)
        done = self._repaired(program, slim, planned.selection, data, context)
        details: dict[str, Any] = {**planned.details, "refits": [asdict(each) for each in done.matrices]}
        if done.refused:
            details["no_refit_of_logits"] = dict(done.refused)
        return Outcome(done.program, planned.selection, done.changed, details, remarks=done.remarks())

    def _repaired(
        self, program: Program, slim: Program, selection: Selection, data: Calibration, context: Context
    ) -> Repaired:
        within = replace(self.scope(analyze(program)), roles=frozenset())
        return repair(program, slim, selection, data, self.repair, context.refitting, takes=within.takes)

    def candidates(self, analysis: Analysis) -> list[Axis]:
        return [site.main for site in find_sites(analysis, self.hidden)]
