"""Train a program: plain, from a teacher, or while its gates close."""

from fxprune.training.distillation import Distillation, Losses
from fxprune.training.examples import Examples
from fxprune.training.fine_tune import TextClassification
from fxprune.training.gate_budgets import Share
from fxprune.training.loop import Recipe
from fxprune.training.pruner import Pruner
from fxprune.training.schedules import Cubic
from fxprune.training.train import Task, Trained

__all__ = [
    "Cubic",
    "Distillation",
    "Examples",
    "Losses",
    "Pruner",
    "Recipe",
    "Share",
    "Task",
    "TextClassification",
    "Trained",
]
