"""Scores: how much each unit of an axis matters, one score per file."""

from __future__ import annotations

from fxprune.scores.activation import activation
from fxprune.scores.base import Evidence, Score, Worth
from fxprune.scores.gradients import fisher, taylor
from fxprune.scores.magnitude import magnitude, random_score
from fxprune.scores.obs import optimal_brain_surgeon

SCORES: dict[str, Score] = {
    "magnitude": Score(
        "norm of the unit's weights, over all coupled parameters", magnitude, needs_data=False, comparable=False
    ),
    "random": Score("uniform numbers, to compare with", random_score, needs_data=False, comparable=False),
    "activation": Score("norm of its activations × norm of the weights that read them (Wanda)", activation, comparable=False),
    "taylor": Score("first-order change of the loss without it: magnitude of the sum of weight × gradient", taylor, comparable=False),
    "fisher": Score("the square of that: diagonal Fisher information of gates on the units", fisher),
    "obs": Score("error of the readers after their best re-fit, one after another (ZipLM)", optimal_brain_surgeon),
}  # fmt: skip

__all__ = ["SCORES", "Evidence", "Score", "Worth"]
