"""Options of a recovery, and the budget of time or steps that it keeps to."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from fxprune.training.recovery.images import Augmentation

RISING = 0.05
"""Share of a run in which the learning rate rises."""

FEWEST_JUDGED = 32
"""Held-back rows of a judgement, at least."""

JUDGED_SHARE = 0.2
"""Rows of all judgements, as a share of the rows that are trained on: a row takes about half of the time of one of these."""

_MORE = 10
"""Judgements beside those of the run itself: at the start, of trials, and of other rows at the end."""


@dataclass(frozen=True)
class Lessons:
    """Settings of a recovery; a `rate` of 0 is found by trials, a `precision` of auto by timing.

    `distance` is a row of OUTPUT_DISTANCES for all outputs ("": what fits each), `hidden` the weight of the values inside beside that of
    the outputs, `local` the share of the run in which each part learns from the original's value of its input. `images` names the inputs
    that are images, and are augmented.
    """

    minutes: float = 0.0
    steps: int = 0
    rate: float = 0.0
    batch: int = 32
    distance: str = ""
    temperature: float = 1.0
    hidden: float = 1.0
    local: float = 0.3
    images: tuple[str, ...] = ()
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: str = "auto"
    clip: float = 1.0
    average: float = 0.02  #: horizon of the mean of weights (EMA), as a share of the steps
    judgements: int = 20  #: on held-back rows, evenly spread
    seed: int = 0

    def judged_rows(self, steps: int, rows: int) -> int:
        """Return the held-back rows of a judgement in a run of so many steps of so many rows: FEWEST_JUDGED at least.

        Of a language model a judgement of hundreds of rows takes a minute, and there are some thirty of them.
        """
        return max(FEWEST_JUDGED, round(JUDGED_SHARE * steps * rows / (self.judgements + _MORE)))


class RunBudget:
    """Time or steps that a run may take, `before` seconds of it before this process."""

    def __init__(self, minutes: float, steps: int, before: float = 0.0) -> None:
        self.seconds, self.steps = 60 * minutes or math.inf, steps or math.inf
        self._start = time.monotonic() - before

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._start

    def progress(self, step: int, since: float = 0.0) -> float:
        """Return the progress after so many steps, 0 to 1; `since` are the seconds before the first of them."""
        timed = (self.elapsed() - since) / max(1e-9, self.seconds - since)
        return min(1.0, max(timed, step / self.steps))

    def left(self, step: int) -> float:
        """Return an estimate of the seconds left after so many steps; NaN where it is not known yet."""
        if self.seconds < math.inf:
            return max(0.0, self.seconds - self.elapsed())
        return self.elapsed() / step * (self.steps - step) if step else math.nan


def share_of_rate(progress: float) -> float:
    """Return the learning rate at a progress, as a share of the highest: it rises, then falls as a cosine to 0."""
    if progress < RISING:
        return max(progress / RISING, 0.1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - RISING) / (1 - RISING))))
