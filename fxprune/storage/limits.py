"""Limits of memory: what a process may use, by what the system has, the limit of its container, and what the user allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import psutil

from fxprune.errors import UsageError

VARIABLE = "FXPRUNE_MEMORY"
"""Environment variable with the bytes that a process may use, as in 6GB."""

COPIES = 4
"""How many times its weights a program takes in memory while it is pruned: the original, the slim one, moments, re-fitted weights."""

_UNITS = {"": 1, "B": 1, **{f"{name}{end}": 1000**i for i, name in enumerate("KMGT", 1) for end in ("", "B")},
          **{f"{name}IB": 1024**i for i, name in enumerate("KMGT", 1)}}  # fmt: skip

_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files of a limit and of what is used of it, by the second and the first version of control groups."""

_allowed: ContextVar[int] = ContextVar("allowed", default=0)


@contextmanager
def limited(allowed: int) -> Iterator[None]:
    """In the block, use no more than so many bytes of memory, as far as this project decides; 0: what the system has."""
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def parse_bytes(text: str) -> int:
    """Return the bytes of a text such as 6GB, 512MiB or 1000000; UsageError for any other."""
    number = text.strip().rstrip("BGIKMTbgikmt")
    unit = text.strip()[len(number) :].upper()
    with suppress(ValueError, OverflowError):
        found = int(float(number) * _UNITS.get(unit, 0))
        if found > 0:
            return found
    raise UsageError(
        f"an amount of memory is a number above 0 with a unit, as in 6GB or 512MiB, got {text!r}"
    )


def allowed_memory() -> int:
    """Return the bytes that this process may use in all: the user's limit, else what it uses and what is free."""
    own = _allowed.get() or _from_environment()
    return min(own, used_memory() + free_memory()) if own else used_memory() + free_memory()


def used_memory() -> int:
    """Return the bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


def free_memory() -> int:
    """Return the bytes that can be allocated without swapping, whatever the user allows."""
    return min([int(psutil.virtual_memory().available), *_left_of_limits()])


def needs_disk(weights: int) -> bool:
    """Return whether a model with so many bytes of weights is pruned from files: COPIES of them would not fit."""
    return COPIES * weights > allowed_memory()


def _from_environment() -> int:
    given = os.environ.get(VARIABLE, "")
    return parse_bytes(given) if given else 0


def _left_of_limits() -> list[int]:
    found = []
    for limit, used in _LIMITS:
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            found.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
    return found
