"""Types that all runtimes share: settings, timings, and a file that is ready to run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxprune.ir import Feeds

Outputs = list[np.ndarray[Any, Any]]

Prepared = Callable[[Feeds], Outputs]


@dataclass(frozen=True, slots=True)
class Settings:
    """Runtime settings that a latency depends on, besides the file; reported beside every number.

    `runtime` is a row of `fxprune.runtimes.registry.RUNTIMES`; of ONNX Runtime's providers, one other than the CPU follows a
    colon, as in `onnxruntime:CUDAExecutionProvider`. `threads` is at least 1. With `peepholes`, ONNX files for it are written in the forms
    that it computes faster (`fxprune.runtimes.peepholes`).
    """

    threads: int = 1
    optimization: str = "all"
    runtime: str = "onnxruntime"
    peepholes: bool = True


DEFAULT = Settings()


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run of one file: median, lower and upper quartile, and the number of runs."""

    median: float
    low: float
    high: float
    runs: int
