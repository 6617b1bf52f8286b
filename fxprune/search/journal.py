"""Evaluation journal: JSON lines, so that a search that was killed resumes where it stopped and repeats no evaluation."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fxprune.errors import UsageError
from fxprune.files import read_text, strict_json

_FORMAT = "fxprune.journal/1"
_START = json.dumps({"format": _FORMAT})[:-1]  # of every line


class Journal:
    """Scores of one evaluator and one program, by removed regions; in memory only where there is no path.

    UsageError where the file is not a journal.
    """

    def __init__(self, path: str | os.PathLike[str] | None, evaluator: str, program: str) -> None:
        self.path = Path(path) if path else None
        self.identity = {"format": _FORMAT, "evaluator": evaluator, "program": program}
        self.scores: dict[frozenset[str], float] = {}
        text = _text(self.path) if self.path else ""
        self.torn = bool(text) and not text.endswith("\n")
        for number, line in enumerate(text.splitlines(), 1):
            self._read(line, number)

    def _read(self, line: str, number: int) -> None:
        foreign = UsageError(f"{self.path}, line {number}: no journal of a search; give another path")
        if not (line.startswith(_START) or _START.startswith(line)):
            raise foreign
        try:
            entry = strict_json(line)
        except json.JSONDecodeError:
            return  # the last line of a process that was killed while it wrote
        except ValueError:
            raise foreign from None
        try:
            own = {key: entry[key] for key in self.identity} == self.identity
            removed, score = entry["removed"], entry["score"]
        except (KeyError, TypeError):
            raise foreign from None
        named = isinstance(removed, list) and all(isinstance(name, str) for name in removed)
        if not named or type(score) not in {int, float}:
            raise foreign
        if own:
            self.scores[frozenset(removed)] = float(score)

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


def _text(path: Path) -> str:
    """Return the text of a journal, empty where there is no file yet; UsageError where it could not be written later."""
    try:
        os.lstat(path)
        exists = True
    except FileNotFoundError:
        exists = False
    except OSError as error:
        raise UsageError(f"the journal {str(path)[:200]} can't be written: {error.strerror}") from error
    if not os.access(path if exists else path.parent, os.W_OK):
        raise UsageError(f"the journal {path} can't be written; give another path in a folder that exists")
    return read_text(path, "journal", UsageError) if exists else ""


def evaluator_identity(evaluate: Callable[..., Any]) -> str:
    """Return a text that distinguishes evaluators: the evaluator's own `identity`, else where it is defined and its configuration."""
    own = getattr(evaluate, "identity", None)
    if own is not None:
        return str(own)
    if isinstance(evaluate, functools.partial):
        return f"{evaluator_identity(evaluate.func)}{evaluate.args}{evaluate.keywords}"
    name = getattr(evaluate, "__qualname__", None)
    return f"{evaluate.__module__}.{name}" if name else repr(evaluate)
