"""Run and time files: one runtime, one file."""

from fxprune.runtimes.base import Settings, Timing
from fxprune.runtimes.onnxruntime import open_session
from fxprune.runtimes.registry import RUNTIMES, runtime_of
from fxprune.runtimes.timing import measure

__all__ = ["RUNTIMES", "Settings", "Timing", "measure", "open_session", "runtime_of"]
