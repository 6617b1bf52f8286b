"""Kept steps: what a long computation has done so far, written as it goes, so that a run that was killed goes on there.

Where steps are kept is the pipeline's matter (`keeping`). A computation asks for its keeper, reads what an earlier run of the same left,
and writes what it has done whenever that is due.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias

from torch import Tensor

SECONDS = 20.0
"""Seconds from one writing to the next: steps that take less are done again."""

Content: TypeAlias = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors by name, and plain data."""


class StepStore(Protocol):
    """Protocol of a store of steps by name, those of one pass on one program and data."""

    def read(self, name: str) -> Content | None:
        """Return what was written last under a name, None where nothing was."""

    def write(self, name: str, step: int, content: Content) -> None:
        """Write what has been done after so many steps, in place of what was written under the name."""


class Keeper:
    """Place of one computation in a store; without a store nothing is read or written."""

    def __init__(self, store: StepStore | None = None, name: str = "") -> None:
        self._store, self._name = store, name
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time to write."""
        return self._store is not None and time.monotonic() - self._last >= SECONDS

    def read(self, part: str = "") -> Content | None:
        """Return what an earlier run wrote of a part."""
        return None if self._store is None else self._store.read(self._name + part)

    def write(self, step: int, content: Content, part: str = "") -> None:
        """Write what has been done of a part after so many steps."""
        if self._store is not None:
            self._store.write(self._name + part, step, content)
            self._last = time.monotonic()


_current: ContextVar[tuple[StepStore, Counter[str]] | None] = ContextVar("kept_steps", default=None)


@contextmanager
def keeping(store: StepStore | None) -> Iterator[None]:
    """In the block, keep steps in a store; None: keep none."""
    token = _current.set(None if store is None else (store, Counter()))
    try:
        yield
    finally:
        _current.reset(token)


def keeper(kind: str) -> Keeper:
    """Return the keeper of one more computation of a kind: a run does them in the same order each time."""
    found = _current.get()
    if found is None:
        return Keeper()
    store, numbers = found
    numbers[kind] += 1
    return Keeper(store, f"{kind}-{numbers[kind]}")
