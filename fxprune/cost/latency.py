"""Measured latency: a meter that times small files on the runtime, with a cache."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fxprune.cost.budgets import Key
from fxprune.errors import FxpruneError
from fxprune.export import export_onnx, save_pt2
from fxprune.files import strict_json, write_text
from fxprune.ir import Program, feeds
from fxprune.runtimes import Settings, measure, runtime_of
from fxprune.runtimes.registry import settings_identity

SECONDS_A_FILE = 0.3
"""Seconds for which each small file is timed, in turns with the others."""


@dataclass
class Clock:
    """Meter that times small files on the runtime, in milliseconds; times are cached in a file, by identity of the machine and the runtime.

    A machine's speed varies from day to day, and while others work on it. The yardstick, the first program that is asked for, is timed
    with whatever is timed: its change takes the speed of a moment out of the times that are new, so that all are comparable. The first
    program with a cached time is timed as well: its change scales cached times to today's speed.
    """

    settings: Settings
    cache: Path | None = None
    observe: Callable[[int], None] = lambda count: None
    _cached: dict[str, float] = field(default_factory=dict)
    _known: dict[str, float] = field(default_factory=dict)
    _yardstick: tuple[str, Callable[[], Program]] | None = None
    _today: float = 1.0

    def __post_init__(self) -> None:
        self._cached = _read(self.cache)

    def __call__(self, wanted: Mapping[Key, tuple[str, Callable[[], Program]]]) -> dict[Key, float]:
        names = {key: self._name(signature) for key, (signature, _) in wanted.items()}
        makers = {names[key]: make for key, (_, make) in wanted.items()}
        cached = [name for name in makers if name in self._cached]
        missing = [name for name in makers if name not in self._known and name not in self._cached]
        new = [*missing]
        if cached:  # the first of them is timed; the others are scaled by its change
            missing.insert(0, cached[0])
        if missing:
            self._time({name: makers[name] for name in missing})
        if cached:
            self._scale(cached[0])
        if new:
            _write(self.cache, {name: self._known[name] / self._today for name in new})
        return {key: self._known[name] for key, name in names.items()}

    def _time(self, missing: Mapping[str, Callable[[], Program]]) -> None:
        """Time programs beside the yardstick, whose change since it was first timed is the speed of this moment."""
        name, make = self._yardstick = self._yardstick or next(iter(missing.items()))
        fresh = self._timed({name: make, **missing})
        speed = fresh[name] / self._known.get(name, fresh[name])
        self._known |= {each: fresh[each] / speed for each in missing}

    def _scale(self, reference: str) -> None:
        """Take over the cached times, scaled to today's speed by the change of one that has been timed."""
        self._today = self._known[reference] / self._cached[reference]
        scaled = {name: time * self._today for name, time in self._cached.items()}
        self._known, self._cached = scaled | self._known, {}

    def _name(self, signature: str) -> str:
        return hashlib.sha256(f"{settings_identity(self.settings)} {signature}".encode()).hexdigest()[:24]

    def _timed(self, makers: Mapping[str, Callable[[], Program]]) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="fxprune-cost-") as folder:
            files, given = {}, {}
            for i, make in enumerate(makers.values()):
                self.observe(i)
                name, program = str(i), make()
                files[name] = write_program(program, Path(folder) / name, self.settings)
                given[name] = feeds(program)
            timed = measure(files, given, self.settings, SECONDS_A_FILE * len(files))
        return {name: timed[str(i)].median for i, name in enumerate(makers)}


def write_program(program: Program, path: Path, settings: Settings) -> Path:
    """Write the program as a file that the runtime of the settings runs, and return its path."""
    suffix = runtime_of(settings).suffix
    target = path.with_suffix(suffix)
    return (
        export_onnx(program, target, settings=settings).path
        if suffix == ".onnx"
        else save_pt2(program, target)
    )


def default_cache() -> Path:
    """Return the path of the cache: $FXPRUNE_CACHE, or fxprune/costs.json in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FXPRUNE_CACHE") or Path(base) / "fxprune" / "costs.json")


def _read(path: Path | None) -> dict[str, float]:
    """Return the times in a cache file; a file that is no such table counts as empty, since all of it can be measured again."""
    try:
        data = strict_json(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    times = data.items() if isinstance(data, dict) else ()
    return {name: time for name, time in times if isinstance(time, float) and 0 < time < math.inf}


def _write(path: Path | None, known: Mapping[str, float]) -> None:
    """Write the known times, and keep those that another run has added meanwhile; a cache that can't be written is no error."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**_read(path), **known}, indent=0, sort_keys=True) + "\n"
        write_text(path, text, overwrite=True)
    except (OSError, FxpruneError):
        return
