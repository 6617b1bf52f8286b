"""Evaluation journal: JSON lines, so that a search that was killed resumes where it stopped and repeats no evaluation."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fxprune.errors import UsageError

_FORMAT = "fxprune.journal/1"


class Journal:
    """Scores of one evaluator and one program, by removed regions; in memory only where there is no path.

    UsageError where the file is not a journal.
    """

    def __init__(self, path: str | os.PathLike[str] | None, evaluator: str, program: str) -> None:
        self.path = Path(path) if path else None
        self.identity = {"format": _FORMAT, "evaluator": evaluator, "program": program}
        self.scores: dict[frozenset[str], float] = {}
        text = self.path.read_text(encoding="utf-8") if self.path and self.path.exists() else ""
        self.torn = bool(text) and not text.endswith("\n")
        for number, line in enumerate(text.splitlines(), 1):
            self._read(line, number)

    def _read(self, line: str, number: int) -> None:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            return  # the last line of a process that was killed while it wrote
        if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
            raise UsageError(f"{self.path}, line {number}: no journal of a search; give another path")
        if {key: entry[key] for key in self.identity} == self.identity:
            self.scores[frozenset(entry["removed"])] = float(entry["score"])

    def write(self, removed: Iterable[str], score: float, seconds: float) -> None:
        """Record one evaluation; once this returns, it survives a crash."""
        key = frozenset(removed)
        self.scores[key] = score
        if not self.path:
            return
        entry = {**self.identity, "removed": sorted(key), "score": score, "seconds": round(seconds, 3)}
        start, self.torn = "\n" if self.torn else "", False
        with self.path.open("a", encoding="utf-8") as file:
            file.write(start + json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def evaluator_identity(evaluate: Callable[..., Any]) -> str:
    """Return a text that distinguishes evaluators: the evaluator's own `identity`, else where it is defined and its configuration."""
    own = getattr(evaluate, "identity", None)
    if own is not None:
        return str(own)
    if isinstance(evaluate, functools.partial):
        return f"{evaluator_identity(evaluate.func)}{evaluate.args}{evaluate.keywords}"
    name = getattr(evaluate, "__qualname__", None)
    return f"{evaluate.__module__}.{name}" if name else repr(evaluate)
