"""Passes in order: their text, their context, their proofs."""

from fxprune.pipeline.base import Measuring, Outcome, Pass, Scoped, require
from fxprune.pipeline.context import EMPTY, Context, Progress
from fxprune.pipeline.run import Pipeline, Result
from fxprune.pipeline.train import Training

__all__ = [
    "EMPTY",
    "Context",
    "Measuring",
    "Outcome",
    "Pass",
    "Pipeline",
    "Progress",
    "Result",
    "Scoped",
    "Training",
    "require",
]
