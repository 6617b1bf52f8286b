"""Line charts as plain geometry, for a template to draw; lines differ by dashes and marks, so that no colour is needed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 44
MOST_POINTS = 300
"""Number of points above which a line is thinned."""

_Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points with a name, joined by a line or not; `mark` is drawn at each: `dot`, `chosen` or nothing.

    `titles` are the tooltips of single points, `texts` are written beside them.
    """

    label: str
    points: tuple[_Point, ...]
    joined: bool = True
    mark: str = ""
    titles: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in the drawing's units, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart to draw: a title, the names of the axes, ticks, and lines in the drawing's units; `summary` describes it in words."""

    title: str
    summary: str
    labels: tuple[str, str]
    ticks: tuple[tuple[Tick, ...], tuple[Tick, ...]]
    lines: tuple[Line, ...]
    size: tuple[int, int] = (WIDTH, HEIGHT)
    frame: tuple[int, int, int, int] = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def chart(
    title: str,
    summary: str,
    labels: tuple[str, str],
    lines: Sequence[Line],
    log: bool = False,
    ends: tuple[float | None, float | None] = (None, None),
) -> Chart:
    """Return a chart of lines in their own units; `log` (drops values ≤ 0) and `ends`, its limits, are for the vertical axis."""
    lines = [_thinned(line, log) for line in lines]
    xs, ys = ([point[i] for line in lines for point in line.points] for i in (0, 1))
    xs, ys = xs or [0.0, 1.0], ys or [1.0, 10.0]  # no finite points (a loss of nan): an empty chart
    x_low, x_high = _ends(xs, (None, None))
    counts = all(float(x).is_integer() for x in xs)
    y_low, y_high = (min(ys), max(ys)) if log else _ends(ys, ends)
    across = _scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    up = _scale(*_decades(y_low, y_high), HEIGHT - BOTTOM, TOP) if log else _scale(y_low, y_high, HEIGHT - BOTTOM, TOP)  # fmt: skip
    at = (lambda y: up(math.log10(y))) if log else up
    marks = decades(y_low, y_high) if log else ticks(y_low, y_high)
    placed = tuple(_placed(line, across, at) for line in lines)
    across_ticks = tuple(
        Tick(round(across(x), 1), f"{x:g}") for x in ticks(x_low, x_high) if not counts or x.is_integer()
    )
    return Chart(title, summary, labels, (across_ticks, tuple(Tick(round(at(y), 1), f"{y:g}") for y in marks)), placed)  # fmt: skip


def _thinned(line: Line, log: bool) -> Line:
    """Return a line without points that can't be drawn, thinned to about MOST_POINTS."""
    step = max(1, -(-len(line.points) // MOST_POINTS))
    chosen = [i for i in range(len(line.points)) if i % step == 0 or i == len(line.points) - 1]
    chosen = [i for i in chosen if math.isfinite(line.points[i][1]) and not (log and line.points[i][1] <= 0)]
    points = tuple(line.points[i] for i in chosen)
    titles, texts = (tuple(words[i] for i in chosen if words) for words in (line.titles, line.texts))
    return replace(line, points=points, titles=titles, texts=texts)


def _ends(values: Sequence[float], given: tuple[float | None, float | None]) -> tuple[float, float]:
    low = min(values) if given[0] is None else given[0]
    high = max(values) if given[1] is None else given[1]
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - room * (given[0] is None), high + room * (given[1] is None)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _decades(low: float, high: float) -> tuple[float, float]:
    below, above = math.log10(low), math.log10(high)
    room = max(0.1, 0.04 * (above - below))
    return below - room, above + room


def _placed(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> Line:
    return replace(line, points=tuple((round(across(x), 1), round(up(y), 1)) for x, y in line.points))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers between two others, in at most `most` intervals."""
    raw = (high - low) / most
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Return powers of ten about between two numbers; where there are few, also 2 and 5 times these."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1,) if last - first > 3 else (1, 2, 5)
    found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    return [value for value in found if low * 0.79 <= value <= high * 1.26]
