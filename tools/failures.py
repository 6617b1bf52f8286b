"""Failures of a command as sentences and exit codes: the one place that knows what a user can cause."""

import importlib.metadata
import re
import traceback
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from fxprune.errors import (
    CaptureError,
    ExportError,
    FxpruneError,
    PassError,
    PipelineError,
    RefusedError,
    SelectionError,
    UsageError,
)
from fxprune.ir import first_line

FAILED_CLAIM, BAD_USE, OWN_ERROR, INTERRUPTED = 1, 2, 3, 130

_LINES, _LETTERS = 3, 900  # lines of a sentence, and letters of a line

_BAD_USE = (CaptureError, PipelineError, RefusedError, SelectionError, UsageError)

# what the machine or the data of a user can make a library raise, and the sentence that explains it
_CAUSED: Mapping[type[BaseException], str] = MappingProxyType(
    {
        MemoryError: "there is not enough memory",
        torch.OutOfMemoryError: "there is not enough memory on the device",
        LinAlgError: "the numbers are too large, or too alike, to be decomposed; look at the calibration data",
    }
)
# clauses of libraries that point to text which was kept off the terminal
_POINTERS = re.compile(r"\s*[^.;(]*\b(?:warnings?|logs?|messages?|errors?|traceback)\s+above\b[^.;)]*[.;]?")


def failure_of(error: BaseException) -> tuple[str, int]:
    """Return the sentence for an error that ended a command, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; no result was written", INTERRUPTED
    if isinstance(error, FxpruneError):
        return _plain(str(error)), BAD_USE if _is_caused(error) else FAILED_CLAIM
    if isinstance(error, SystemExit):
        return "code of the model, or of a library, ended the process; no result was written", BAD_USE
    if isinstance(error, BrokenPipeError):
        return "standard output was closed before all was printed", BAD_USE
    if isinstance(error, OSError):
        return _plain(_of_system(error)), BAD_USE
    for kind, sentence in _CAUSED.items():
        if isinstance(error, kind):
            return sentence, BAD_USE
    return _plain(_of_ours(error)), OWN_ERROR


def _is_caused(error: BaseException) -> bool:
    """Return whether an error, or the cause of a pass's or a file's failure, is of the user's making."""
    cause = error.__cause__
    if isinstance(error, PassError | ExportError) and cause is not None:
        return _is_caused(cause) or isinstance(cause, OSError | MemoryError)
    return isinstance(error, _BAD_USE)


def _of_system(error: OSError) -> str:
    place = f": {str(error.filename)[:200]}" if error.filename else ""
    return f"{error.strerror or first_line(error)}{place}; no result was written"


def _of_ours(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f", {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return (
        f"an error of fxprune itself ({type(error).__name__}{place}: {first_line(error)}); no result was written\n"
        f"please report it, with what --traceback shows: {_tracker()}"
    )


def _tracker() -> str:
    """Return where errors are reported: the first address of the project, if it has one."""
    try:
        urls = importlib.metadata.metadata("fxprune").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        urls = []
    return next((url.partition(",")[2].strip() for url in urls), "the issue tracker")


def _plain(text: str) -> str:
    """Return a text without clauses that point to other text, with control characters as escapes, in a few lines of some length."""
    short = "\n".join(_short("".join(map(_visible, line))) for line in _few(text.split("\n")))
    return _POINTERS.sub("", short).replace(" ()", "") if _POINTERS.search(short) else short


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else repr(letter)[1:-1]


def _few(lines: list[str]) -> list[str]:
    """Return at most _LINES lines: a name may have line breaks, and the last line may be a caret that points into the one before."""
    first = len(lines) - _LINES + 1
    return lines if first < 2 else [" ".join(lines[:first]), *lines[first:]]


def _short(line: str) -> str:
    return line if len(line) <= _LETTERS else f"{line[: _LETTERS * 2 // 3]} … {line[-_LETTERS // 3 :]}"
