"""Limits of memory: what a process may use, by what the system has, the limit of its container, and what the user allows."""

from __future__ import annotations

import math
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

_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Folder, limit, and what is used of it, by the second and the first version of control groups; how names in memory.stat begin."""

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
    own, there = user_limit(), used_memory() + free_memory()
    return min(own, there) if own else there


def user_limit() -> int:
    """Return the bytes that the user allows, 0 for no limit."""
    return _allowed.get() or _from_environment()


def used_memory() -> int:
    """Return the bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


def free_memory() -> int:
    """Return the bytes that can be allocated without swapping, whatever the user allows."""
    return min([int(psutil.virtual_memory().available), *_left_of_limits()])


def needs_disk(weights: int) -> bool:
    """Return whether a model with so many bytes of weights is pruned from files.

    That is where COPIES of them exceed what the user allows, or COPIES less the model itself what is free for each process of this machine.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return (
        COPIES * weights > (user_limit() or math.inf) or (COPIES - 1) * weights > free_memory() // processes
    )


def _from_environment() -> int:
    given = os.environ.get(VARIABLE, "")
    try:
        return parse_bytes(given) if given else 0
    except UsageError as error:
        raise UsageError(f"{VARIABLE}: {error}") from None


def _left_of_limits() -> list[int]:
    """Return what is left of the limits of control groups; the cache of files, which the system gives up, counts as left."""
    found = []
    for folder, limit, used, start in _GROUPS:
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            top, now = (int((Path(folder) / name).read_text()) for name in (limit, used))
            told = (line.split() for line in (Path(folder) / "memory.stat").read_text().splitlines())
            cached = sum(
                int(size) for name, size in told if name in {f"{start}inactive_file", f"{start}active_file"}
            )
            found.append(max(0, top - now + cached))
    return found
