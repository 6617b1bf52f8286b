"""Task metrics: METRICS for classes, one row each, by scikit-learn (the extra `train`) except accuracy; and SQuAD's for answers."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.rewrite.islands import in_model
from fxprune.tools.inputs.loaded import failed_call, find_named
from fxprune.training.fine_tune import Metric, accuracy

_FOR = "the metric"
_NEEDS = "the metric {} needs scikit-learn ({}); install: pip install 'fxprune[train]'"


def matthews(labels: Any, predictions: Any) -> float:
    """Return Matthews' correlation: 0 for constant or random predictions, 1 where all are right."""
    return float(_learned("matthews").matthews_corrcoef(labels, predictions))


def f1(labels: Any, predictions: Any) -> float:
    """Return the mean over classes of the harmonic mean of precision and recall."""
    return float(_learned("f1").f1_score(labels, predictions, average="macro", zero_division=0.0))


@dataclass(frozen=True)
class _Row:
    """A metric, and its help."""

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
    """Return 1 where two answers have the same words, else 0 (SQuAD's exact match)."""
    return float(_words(wanted) == _words(found))


def overlap(wanted: str, found: str) -> float:
    """Return the harmonic mean of the shares of each answer's words that the other has (SQuAD's F1)."""
    ours, theirs = _words(found), _words(wanted)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else float(ours == theirs)


def _words(text: str) -> list[str]:
    """Return the words that SQuAD's own script counts: lower case, without punctuation and articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def own_metric(text: str) -> Callable[[Program], float]:
    """Return the metric that `py:PACKAGE.MODULE:FUNCTION` names: a function of the model, called as the user's own is, to a number.

    UsageError where there is no such function, and when it fails or returns no finite number.
    """
    function: Callable[..., Any] = find_named(text, _FOR)

    def measured(program: Program) -> float:
        try:
            found = float(function(in_model(program).eval()))
        except (Exception, SystemExit) as error:
            raise failed_call(text, error) from error
        if not math.isfinite(found):
            raise UsageError(
                f"{text} returned {found} for the model; a metric is a finite number, higher is better"
            )
        return found

    return measured


def own_figures(text: str | None, original: Program) -> Callable[[Program], dict[str, Any] | None]:
    """Measure the original by the metric of this name, and return a function that gives both figures of a program; None without one.

    Where the metric fails on that program, `why` says it, and `after` is None.
    """
    if not text:
        return lambda program: None
    metric = own_metric(text)
    known = {"name": text.rpartition(":")[2], "before": metric(original)}

    def figures(program: Program) -> dict[str, Any]:
        try:
            return known | {"after": metric(program), "why": ""}
        except UsageError as error:  # the results are worth more than their measure
            return known | {"after": None, "why": str(error)}

    return figures
