"""Metrics of classes: METRICS, one row each; those that are more than a share come from scikit-learn (the extra `train`)."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fxprune.errors import UsageError
from fxprune.training.fine_tune import Metric, accuracy

_NEEDS = "the metric {} needs scikit-learn ({}); install: pip install 'fxprune[train]'"


def matthews(labels: Any, predictions: Any) -> float:
    """Matthews' correlation: 0 for what any constant or coin does, 1 for what is all right."""
    return float(_learned("matthews").matthews_corrcoef(labels, predictions))


def f1(labels: Any, predictions: Any) -> float:
    """The mean over classes of the harmonic mean of precision and recall."""
    return float(_learned("f1").f1_score(labels, predictions, average="macro", zero_division=0.0))


@dataclass(frozen=True)
class _Row:
    """A metric, and what it is."""

    of: Metric
    help: str


METRICS: dict[str, _Row] = {
    "accuracy": _Row(accuracy, "the share of answers that are right"),
    "matthews": _Row(matthews, "Matthews' correlation, for classes of unequal sizes"),
    "f1": _Row(f1, "the mean of F1 over the classes"),
}


def _learned(name: str) -> Any:
    try:
        from sklearn import metrics  # type: ignore[import-untyped]
    except ImportError as error:
        raise UsageError(_NEEDS.format(name, error)) from error
    return metrics


def exact(wanted: str, found: str) -> float:
    """1 where two answers have the same words (SQuAD's exact match)."""
    return float(_words(wanted) == _words(found))


def overlap(wanted: str, found: str) -> float:
    """The harmonic mean of the shares of each answer's words that the other has (SQuAD's F1)."""
    ours, theirs = _words(found), _words(wanted)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else float(ours == theirs)


def _words(text: str) -> list[str]:
    """As SQuAD's own script counts them: lower case, without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()
