"""Context of a pipeline: the values that its passes may take beside the program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from fxprune.calibration import Calibration, Objective, check_calibration
from fxprune.calibration.objective import Loss
from fxprune.cost import Clock, default_cache
from fxprune.errors import UsageError
from fxprune.frontend.module_calls import island_batches
from fxprune.ir import Point, Program, Selection, point_with
from fxprune.runtimes import Settings, runtime_of
from fxprune.runtimes.base import DEFAULT
from fxprune.search import Evaluate
from fxprune.training import Recipe, Task
from fxprune.training.loop import Checkpoints
from fxprune.training.recovery.lesson import OwnDistance
from fxprune.training.teacher_cache import TeacherCache

DEFAULT_POINT: Point = MappingProxyType({"batch": 8, "length": 128})
"""The sizes that costs refer to unless others are given; axes that a program does not have are ignored."""

#: field of Context that a pass may need: (what it is, the option of the command line that supplies it)
SUPPLIES: dict[str, tuple[str, str]] = {
    "data": ("calibration data", "--calibration FILE"),
    "task": ("labelled rows to train on", "`fxprune train` with --task and --data"),
}


@dataclass(frozen=True)
class Progress:
    """Report of progress: the pass (`stage`), what it does, and, where steps are counted, how many of `total` are done.

    `seconds` is an estimate of the time left; NaN where there is none. `percent`: not steps are counted, but shares of the whole.
    """

    stage: str
    text: str = ""
    done: int = 0
    total: int = 0
    seconds: float = math.nan
    percent: bool = False


@dataclass(frozen=True, eq=False)
class Context:
    """Values that passes may take beside the program; options in a pipeline's text win over it.

    `data` are unlabelled batches, as a list or a DataLoader gives them (see `fxprune.calibration.data.check_calibration`), of which the
    first `rows` are held in memory (0: all); fits are judged on `held_back`, so many rows too (None: on some of the data). `loss` is what
    is kept small on them (None: the distance to the model's own outputs). `evaluate` rates programs for a search over layers; that, and
    the trials of cuts for a plan, run on `executor` where one is given. `task` is what is trained for by `recipe`, from `teacher` where
    there is one. Calibration, scores, re-fits and training compute on `device` ("": where the weights are). `settings` and `point` are
    the runtime and the sizes that costs are measured at, `cache` the file that remembers measurements (True: one in the user's cache
    folder). `seed` is that of all that draws; None leaves it to options and recipe. `checkpoints` lets training that was killed go on,
    `lowering` is a row of `fxprune.gates.LOWERINGS` or "measured". `observe` is called with Progress. `distance` compares outputs in a
    recovery, in place of what fits them; `metric` rates a program that a recovery must not make worse (None: `evaluate`).
    `together` says that all processes of this run (torchrun, `accelerate launch`) run the pipeline on the same data: passes that can then
    split the data between them.
    """

    data: Calibration | Iterable[Any] | None = None
    rows: int = 0
    held_back: Calibration | Iterable[Any] | None = None
    loss: Loss | None = None
    evaluate: Evaluate | None = None
    executor: Executor | None = None
    task: Task | None = None
    recipe: Recipe = field(default_factory=Recipe)
    teacher: nn.Module | None = None
    settings: Settings = DEFAULT
    point: Point = field(default_factory=lambda: DEFAULT_POINT)
    device: str = ""
    seed: int | None = None
    observe: Callable[[Progress], None] = lambda progress: None
    cache: Path | bool = True
    checkpoints: Checkpoints | None = None
    lowering: str = "measured"
    teacher_outputs: TeacherCache | None = None
    distance: OwnDistance | None = None
    metric: Evaluate | None = None
    together: bool = False
    original: Program | None = field(
        default=None, repr=False
    )  #: what programs are compared with: else, what the pipeline began with
    selection: Selection | None = (
        None  #: set by the pipeline: what leads from there to the program, where one selection does
    )
    stage: str = ""  #: and the pass that runs
    step: int = 0  #: and its place

    def checked(self, program: Program) -> Context:
        """Return the context with its data checked against a program, and with a cache of the teacher's outputs."""
        cache = TeacherCache() if self.teacher_outputs is None else self.teacher_outputs
        return replace(self, data=self.calibration(program), held_back=None, teacher_outputs=cache)

    def calibration(self, program: Program) -> Calibration | None:
        """Return the calibration data, checked; None where there are none."""
        data, held = _checked(program, self.data, self.rows), _checked(program, self.held_back, self.rows)
        if held is None:
            return data
        if data is None:
            raise UsageError("held_back judges what is fitted on data, and there are none: give data")
        return data.holding(held)

    def say(self, text: str) -> None:
        """Report what the pass does now."""
        self.observe(Progress(self.stage, text))

    def count(self, done: int, total: int, seconds: float = math.nan, text: str = "") -> None:
        """Report how many steps of the pass are done."""
        self.observe(Progress(self.stage, text, done, total, seconds))

    def advance(self, share: float, seconds: float, text: str) -> None:
        """Report which share of the pass is done, and the seconds that are left (NaN: not known)."""
        self.observe(Progress(self.stage, text, int(100 * share), 100, seconds, percent=True))

    def refitting(self, place: int, count: int) -> None:
        """Report which matrix is re-fitted now."""
        self.say(f"re-fitting matrix {place + 1} of {count}")

    def objective(self, distance: str) -> Objective:
        """Return what is kept small on the data: the loss, or this distance to the model's own outputs."""
        return Objective(distance, self.loss, seed=self.seed or 0)

    def clock(self, settings: Settings | None = None, wanted: bool = True) -> Clock:
        """Return a meter of latency by these settings (None: those of the context).

        UsageError where the runtime is not available, if it is `wanted`.
        """
        if wanted:
            runtime_of(settings or self.settings)
        cache = default_cache() if self.cache is True else self.cache or None
        return Clock(settings or self.settings, cache, lambda i: self.say(f"measuring small file {i + 1}"))

    def point_of(self, program: Program, sizes: Mapping[str, int | None] = MappingProxyType({})) -> Point:
        """Return the point to measure at: the sizes given, else those of the context, else those of the example inputs."""
        own = {name: size for name, size in sizes.items() if size is not None}
        return point_with(program, **{**self.point, **own})


def _checked(program: Program, given: Calibration | Iterable[Any] | None, rows: int) -> Calibration | None:
    if given is None or isinstance(given, Calibration):
        return given
    return check_calibration(program, island_batches(program, given) if program.islands else given, rows)


EMPTY = Context()
"""A context in which nothing is given."""
