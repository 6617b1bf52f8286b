"""Sparsity schedules: numbers, such as the share of the cost that is left, as a function of progress from 0 to 1."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.errors import UsageError


@dataclass(frozen=True)
class Cubic:
    """Cubic decay: 1 until `start`, `final` from `end` on, a cubic in between (To prune, or not to prune, arXiv 1710.01878)."""

    final: float
    start: float = 0.2
    end: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.final <= 1:
            raise UsageError(f"a schedule ends between 0 and 1, got {self.final:g}")
        if not 0 <= self.start < self.end <= 1:
            raise UsageError(
                f"a schedule starts before it ends, both in [0, 1], got {self.start:g} and {self.end:g}"
            )

    def __call__(self, progress: float) -> float:
        """Return the share that is left."""
        gone = min(1.0, max(0.0, (progress - self.start) / (self.end - self.start)))
        return self.final + (1 - self.final) * (1 - gone) ** 3


@dataclass(frozen=True)
class Rising:
    """Cubic rise: 0 until `start`, `final` from `end` on, in between `final` times the complement of a `Cubic` to 0."""

    final: float
    start: float = 0.2
    end: float = 0.4

    def __post_init__(self) -> None:
        Cubic(0.0, self.start, self.end)

    def __call__(self, progress: float) -> float:
        """Return the value of the schedule."""
        return self.final * (1 - Cubic(0.0, self.start, self.end)(progress))
