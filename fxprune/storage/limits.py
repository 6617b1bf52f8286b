"""Memory that is free: what the system has, within the limit of a container."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from fxprune.ir import Program

_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files of a limit and of what is used of it, by the second and the first version of control groups."""


def free_memory() -> int:
    """Return the bytes that can be allocated without swapping."""
    return min([int(psutil.virtual_memory().available), *_left_of_limits()])


def moments_limit(program: Program) -> int:
    """Return the bytes that moments may take in one pass over the data.

    That is half of what the weights take, or an eighth of the memory that is free, and 32 MiB at least.
    """
    return max(program.parameter_bytes() // 2, free_memory() // 8, 1 << 25)


def _left_of_limits() -> list[int]:
    found = []
    for limit, used in _LIMITS:
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            found.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
    return found
