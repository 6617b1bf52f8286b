"""Passes in order: their text, their context, their proofs."""

from fxprune.pipeline.base import PYTHON, Outcome, Pass, Training, require
from fxprune.pipeline.run import Pipeline

__all__ = [
    "PYTHON",
    "Outcome",
    "Pass",
    "Pipeline",
    "Training",
    "require",
]
