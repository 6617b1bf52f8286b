"""Recovery: what earlier passes left learns from the original on unlabelled inputs, within minutes, and never gets worse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from fxprune.calibration.repair import HELD_BACK
from fxprune.errors import UsageError
from fxprune.ir import Program, Selection
from fxprune.pipeline import EMPTY, Context, Outcome, Pass, require
from fxprune.pipeline.scope import split_names
from fxprune.training.loop import PRECISIONS, Checkpoints, check_accelerate
from fxprune.training.recovery import OUTPUT_DISTANCES, Lessons, Material, Recovered, recover
from fxprune.training.recovery.progress import closed
from fxprune.training.recovery.recover import check_comparable

MINUTES = 10.0
"""The budget where none is given."""

NO_IMAGES = "none"
"""The name that says of no input that it is images."""


@dataclass(frozen=True)
class Recover(Pass):
    """Train what is left to say what the original says, on unlabelled inputs; the best moment on held-back rows is kept."""

    name: ClassVar[str] = "recover"
    preserves: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = (
        "data",
        "distance",
        "evaluate",
        "metric",
        "device",
        "seed",
        "checkpoints",
    )

    minutes: float | None = None  #: the time that it may take; 10 where no steps are given either
    steps: int | None = None  #: or the steps
    rate: float = 0.0  #: the highest learning rate; 0: found by short trials
    batch: int = 32  #: rows of a step, where the program takes any number
    distance: str = ""  #: how outputs are compared: square, logits, divergence, probabilities or cosine; "": what fits each of them
    temperature: float = 1.0  #: of logits
    hidden: float = 1.0  #: weight of values inside beside outputs
    local: float = 0.3  #: share of the run, at most, in which each part learns from the original's values
    images: str = ""  #: inputs that are images, to be cropped, flipped and mixed; "": those that a folder of images fills; "none": no input
    precision: str = "auto"  #: no, bf16 (mixed), or auto: what is faster

    def __post_init__(self) -> None:
        for option in ("minutes", "steps"):
            value = getattr(self, option)
            require(value is None or 0 < value < math.inf, f"{option} must be above 0, got {value}")
        for option in ("rate", "hidden"):
            value = getattr(self, option)
            require(0 <= value < math.inf, f"{option} must be at least 0, got {value:g}")
        require(self.minutes is None or self.steps is None, "say minutes or steps, not both")
        require(self.batch >= 1, f"batch must be at least 1, got {self.batch}")
        require(self.temperature > 0, f"temperature must be above 0, got {self.temperature:g}")
        require(0 <= self.local <= 1, f"local must lie in [0, 1], got {self.local:g}")
        known = ("", *OUTPUT_DISTANCES)
        require(
            self.distance in known, f"distance must be one of {', '.join(known[1:])}, got {self.distance!r}"
        )
        ways = (*PRECISIONS, "auto")
        require(self.precision in ways, f"precision must be one of {', '.join(ways)}, got {self.precision!r}")

    def needs(self) -> Mapping[str, str]:
        return {"data": ""}

    def check_program(self, program: Program) -> None:
        shapes = {
            node.name: node.meta["val"]
            for node in program.placeholders()
            if node.name in program.input_names()
        }
        for name in self._named_images():
            if name not in shapes:
                raise UsageError(f"{self}: there is no input {name!r}; inputs: {', '.join(shapes)}")
            if shapes[name].ndim != 4 or not shapes[name].is_floating_point():
                raise UsageError(
                    f"{self}: images are floating-point inputs of four dims (rows, channels, height, width), and {name} is"
                    f" {shapes[name].dtype} of {shapes[name].ndim}"
                )

    def _named_images(self) -> tuple[str, ...]:
        return () if self.images == NO_IMAGES else split_names(self.images)

    def check(self, context: Context) -> None:
        super().check(context)
        check_accelerate()

    def check_data(self, program: Program, context: Context) -> None:
        check_comparable(program, program)
        data = context.calibration(program)
        if data is not None:
            data.split(HELD_BACK, program)

    def run(self, program: Program, context: Context = EMPTY) -> Outcome:
        self.check(context)
        original = program if context.original is None else context.original
        data = context.calibration(original)
        assert data is not None
        material = Material(data, context.distance, context.metric or context.evaluate, context.selection)
        done = self._recovered(original, program, material, context)
        details = {"recovery": done.details}
        return Outcome(done.program, Selection(), done.changed, details, remarks=(_remark(done.details),))

    def _recovered(
        self, original: Program, program: Program, material: Material, context: Context
    ) -> Recovered:
        lessons = self.lessons(context, material.data.images)
        return recover(
            original, program, material, lessons, context.device, _checkpoints(context), context.advance
        )

    def lessons(self, context: Context = EMPTY, images: tuple[str, ...] = ()) -> Lessons:
        """Return the settings of the recovery: those of the options, else of the context; `images` are those that the data name."""
        names = ("rate", "batch", "distance", "temperature", "hidden", "local", "precision")
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        minutes = self.minutes or (0.0 if self.steps else MINUTES)
        images = self._named_images() if self.images else images
        return Lessons(minutes, self.steps or 0, images=images, seed=context.seed or 0, **own)


def _remark(details: Mapping[str, Any]) -> str:
    """Return what became of the program, as a remark."""
    if "why" in details:
        return str(details["why"])
    before, after = details["before"], details["after"]
    told = f"held-back loss {before:.3g} → {after:.3g}, {closed(before, after):.0%} of the gap closed"
    begun = f"; it went on at step {details['resumed']:,}" if details["resumed"] else ""
    begun = f"; it began anew: {details['anew']}" if details["anew"] else begun
    if details["kept"]:
        return f"{told}{begun}"
    metric = details.get("metric")
    confirmed = details.get("confirmed", (1.0, 0.0))
    other = "" if confirmed[1] < confirmed[0] else "; it does not hold on other held-back rows"
    why = f"; the metric fell from {metric[0]:.4g} to {metric[1]:.4g}" if metric else ""
    return f"nothing improved, the program stays as it was ({told}{why}{other}){begun}"


def _checkpoints(context: Context) -> Checkpoints | None:
    """Return the folder of this pass among those of the pipeline."""
    given = context.checkpoints
    return given and replace(given, folder=Path(given.folder) / f"recover-{context.step + 1}")
