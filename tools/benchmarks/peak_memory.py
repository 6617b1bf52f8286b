"""How much memory work takes: the resident set, sampled, by phase."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_SECONDS = 0.02
PAGE = 4096
STATM = Path("/proc/self/statm")


class Peak:
    """Within the block, the growth of the resident set over its level at the start, in bytes, for each phase named by `phase`."""

    def __init__(self) -> None:
        self.growth: dict[str, int] = {}
        self._name, self._running, self._start = "begin", False, 0

    def phase(self, text: str) -> None:
        """What follows belongs to the phase named by a text's first word."""
        self._name = text.split(maxsplit=1)[0]

    def __enter__(self) -> Self:
        self._start, self._running = _resident(), True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            grown = _resident() - self._start
            self.growth[self._name] = max(self.growth.get(self._name, 0), grown)
            time.sleep(_SECONDS)


def _resident() -> int:
    return int(STATM.read_text(encoding="utf-8").split()[1]) * PAGE if STATM.exists() else 0
