"""Time files in turns, so that a slow moment of the machine is spread over all."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from fxprune.ir import Feeds
from fxprune.runtimes.base import DEFAULT, Prepared, Settings, Timing
from fxprune.runtimes.registry import prepare, runtime_of

# A time-boxed measurement still runs this often, however slow the model is.
FEWEST_RUNS = 5

MOST_RUNS = 200


def measure(
    files: Mapping[str, Path], given: Mapping[str, Feeds], settings: Settings = DEFAULT, seconds: float = 2.0
) -> dict[str, Timing]:
    """Time several files on their inputs, taking turns, for about `seconds` in all."""
    return turns({name: prepare(path, settings) for name, path in files.items()}, given, seconds)


def turns(
    calls: Mapping[str, Prepared], given: Mapping[str, Feeds], seconds: float = 2.0
) -> dict[str, Timing]:
    """Time prepared files, in one runtime or several, taking turns, for about `seconds` in all."""
    return _turns({name: _runner(call, given[name]) for name, call in calls.items()}, seconds)


def fastest(
    path: Path, given: Feeds, settings: Settings = DEFAULT, seconds: float = 2.0
) -> tuple[Settings, dict[str, Timing]]:
    """Time a file under every optimisation level of the runtime, taking turns, for about `seconds` in all.

    Returns the settings with the smallest median, and the timings by level.
    """
    choices = {level: replace(settings, optimization=level) for level in runtime_of(settings).levels}
    runs = {level: _runner(prepare(path, choice), given) for level, choice in choices.items()}
    timed = _turns(runs, seconds)
    best = min(timed, key=lambda level: timed[level].median)
    return choices[best], timed


def _runner(call: Prepared, given: Feeds) -> Callable[[], float]:
    """Run once, since some runtimes prepare in their first run, and return a function that gives the milliseconds of one run."""
    call(given)

    def timed() -> float:
        start = time.perf_counter()
        call(given)
        return (time.perf_counter() - start) * 1000

    return timed


def _turns(runs: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, Timing]:
    """Time runs in turns, which spread a slow moment of the machine over all; the order is reversed every other round."""
    for call in runs.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for order in islice(cycle([tuple(runs), tuple(runs)[::-1]]), MOST_RUNS):
        for name in order:
            times[name].append(runs[name]())
        if time.perf_counter() > end and len(times[name]) >= FEWEST_RUNS:
            break
    return {name: _timing(taken) for name, taken in times.items()}


def _timing(taken: list[float]) -> Timing:
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
    return Timing(median, low, high, len(taken))
