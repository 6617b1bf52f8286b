"""Pruning to a budget: all kinds of units at once, to a share of the latency, FLOPs, parameters or bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fxprune.calibration import Calibration, Objective
from fxprune.calibration.objective import DISTANCES, Loss
from fxprune.calibration.repair import REPAIRS, repair
from fxprune.cost import BUDGETS, Clock, default_cache
from fxprune.errors import UsageError
from fxprune.ir import Point, Program, Selection, point_with
from fxprune.pipeline import PYTHON, Outcome, Pass, require
from fxprune.rewrite.apply import apply
from fxprune.runtimes import Settings, runtime_of
from fxprune.scores import SCORES
from fxprune.search.budget_search import Target
from fxprune.search.unit_plans import Planned, PlanRequest, plan


@dataclass(frozen=True)
class Slim(Pass):
    """Remove heads, their dims, neurons, channels and branches until a share of latency (flops, params, bytes) is left; re-fit the rest."""

    name: ClassVar[str] = "slim"

    latency: float = 0.0  #: the share of the measured time that may be left: 0.5 is twice as fast
    flops: float = 0.0  #: or of the operations
    params: float = 0.0  #: or of the parameters
    bytes: float = 0.0  #: or of the bytes
    score: str = "obs"  #: what decides which units stay
    repair: str = "all"  #: none, mean, readers or all: which matrices are re-fitted
    distance: str = "square"  #: square or divergence (for logits): what is kept small where no loss is given
    hidden: bool = False  #: whether the width of the residual stream may shrink, too
    layers: bool = True  #: whether whole residual branches may go
    uniform: bool = False  #: equally many whole heads, neurons or channels in all layers; branches stay
    batch: int = 8  #: the batch that the budget is meant at
    length: int = 128  #: and the length, where the program has one
    threads: int = 1  #: of the runtime
    runtime: str = "onnxruntime"  #: that is measured
    optimization: str = "all"  #: the runtime's level
    data: Calibration | None = field(default=None, metadata=PYTHON)
    loss: Loss | None = field(default=None, metadata=PYTHON)
    cache: Path | None = field(default_factory=default_cache, metadata=PYTHON)
    observe: Callable[[str], None] = field(default=lambda text: None, metadata=PYTHON)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in BUDGETS if getattr(self, name)}
        require(len(given) == 1, f"say one of {', '.join(BUDGETS)}, as in slim(latency=0.5)")
        name, share = next(iter(given.items()))
        require(0 < share < 1, f"{name} is the share that may be left, between 0 and 1, got {share:g}")
        for option, table in (("score", SCORES), ("repair", REPAIRS), ("distance", DISTANCES)):
            value = getattr(self, option)
            require(value in table, f"{option} must be one of {', '.join(table)}, got {value!r}")
        for option in ("batch", "length", "threads"):
            require(getattr(self, option) >= 1, f"{option} must be at least 1, got {getattr(self, option)}")

    def aim(self, program: Program) -> Target:
        """Return the budget, at the point and with the settings of the options; UsageError where the runtime is not available."""
        name = next(name for name in BUDGETS if getattr(self, name))
        settings = Settings(self.threads, self.optimization, self.runtime)
        if BUDGETS[name].count is None:
            runtime_of(settings)
        clock = Clock(settings, self.cache, lambda i: self.observe(f"measuring small file {i + 1}"))
        return Target(name, getattr(self, name), self.point(program), clock)

    def point(self, program: Program) -> Point:
        """Return the point that the budget refers to: batch and length as given, other free sizes as in the example inputs."""
        return point_with(program, batch=self.batch, length=self.length)

    def decide(self, program: Program) -> Planned:
        """Return the plan, with the trials that led to it; UsageError where calibration data are needed and absent."""
        needs = SCORES[self.score].needs_data or self.repair != "none"
        if needs and self.data is None:
            raise UsageError(
                f"slim(score={self.score!r}, repair={self.repair!r}) needs calibration data: give --calibration FILE,"
                " or data=… in Python"
            )
        objective = Objective(self.distance, self.loss)
        request = PlanRequest(
            self.score,
            self.data,
            objective,
            hidden=self.hidden,
            layers=self.layers and not self.uniform,
            uniform=self.uniform,
            repair=self.repair,
            observe=self.observe,
        )
        return plan(program, self.aim(program), request)

    def plan(self, program: Program) -> Selection:
        return self.decide(program).selection

    def run(self, program: Program) -> Outcome:
        planned = self.decide(program)
        slim = apply(program, planned.selection)
        if self.data is None:
            return Outcome(slim, planned.selection, (), planned.details())
        done = repair(program, slim, planned.selection, self.data, self.repair, self._repairing)
        details: dict[str, Any] = planned.details() | {"refits": [asdict(each) for each in done.matrices]}
        return Outcome(done.program, planned.selection, done.changed, details)

    def _repairing(self, place: int, count: int) -> None:
        self.observe(f"re-fitting matrix {place + 1} of {count}")
