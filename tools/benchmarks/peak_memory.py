"""Peak memory by phase: the growth of the resident set, sampled in a thread."""

import threading
import time
from pathlib import Path
from typing import Self

_SECONDS = 0.02
PAGE = 4096
STATM = Path("/proc/self/statm")


class Peak:
    """Context manager that records the largest growth of the resident set since its start, in bytes, for each phase named by `phase`."""

    def __init__(self) -> None:
        self.growth: dict[str, int] = {}
        self._name, self._running, self._start = "begin", False, 0

    def phase(self, text: str) -> None:
        """Begin the phase that is named by the first word of a text."""
        self._name = text.split(maxsplit=1)[0]

    def __enter__(self) -> Self:
        self._start, self._running = _resident(), True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            grown = _resident() - self._start
            self.growth[self._name] = max(self.growth.get(self._name, 0), grown)
            time.sleep(_SECONDS)


def _resident() -> int:
    return int(STATM.read_text(encoding="utf-8").split()[1]) * PAGE if STATM.exists() else 0
