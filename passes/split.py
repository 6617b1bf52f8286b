"""Row-block splitting: smaller products for row blocks that read different columns, where that is measured to be faster."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from fxprune.cost import Clock, default_cache
from fxprune.ir import Program, Selection, point_with
from fxprune.pipeline import PYTHON, Outcome, Pass, require
from fxprune.runtimes import Settings, runtime_of
from fxprune.search.alternatives import cheaper_splits


@dataclass(frozen=True)
class Split(Pass):
    """Replace a matrix with zeros by a few smaller products where that is measured to be faster; no output changes. It goes last."""

    name: ClassVar[str] = "split"
    preserves: ClassVar[bool] = True

    batch: int = 1  #: at which it is measured
    length: int = 128  #: and the length, where the program has one
    threads: int = 1  #: of the runtime
    runtime: str = "onnxruntime"  #: that is measured
    cache: Path | None = field(default_factory=default_cache, metadata=PYTHON)

    def __post_init__(self) -> None:
        for option in ("batch", "length", "threads"):
            require(getattr(self, option) >= 1, f"{option} must be at least 1, got {getattr(self, option)}")

    def run(self, program: Program) -> Outcome:
        """Split where it pays; the details list the splits that were tried, with both costs."""
        settings = Settings(self.threads, runtime=self.runtime)
        runtime_of(settings)
        point = point_with(program, batch=self.batch, length=self.length)
        slim, verdicts = cheaper_splits(program, Clock(settings, self.cache), point)
        return Outcome(slim, Selection(), (), {"splits": [asdict(v) | {"pays": v.pays} for v in verdicts]})
