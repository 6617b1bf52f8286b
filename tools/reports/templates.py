"""HTML pages: a Jinja template becomes one self-contained file, in which values are escaped."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_SOURCE = re.compile(r"^(?P<place>.*?:\d+) in (?P<function>\S+?)(?:: (?P<code>.*))?$")

_JOINTS = re.compile(r"(?<=[^\W\d])[._/](?=\w)|[._/](?=[^\W\d])")


@dataclass(frozen=True)
class Source:
    """A line of source code: `file.py:12`, the function that contains it, and its text, where torch could read it."""

    place: str
    function: str
    code: str


@dataclass(frozen=True)
class Tile:
    """A summary figure: its label, its value, and what it comes from."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Pair:
    """A size before and after: as words, as percentages of the longer bar, and their ratio in words; `sub` is a further remark."""

    label: str
    before: str
    after: str
    widths: tuple[float, float]
    ratio: str
    sub: str = ""


@dataclass(frozen=True)
class Refused:
    """Refusals for one reason: why, what stays whole, a node, and the source line behind it, where one is known."""

    why: str
    what: tuple[str, ...]
    node: str
    source: Source | None


def render(template: str, **values: Any) -> str:
    """Return a page from its template and values; a missing value is an error."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fxprune.tools.reports", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "breakable": breakable}
    return environment


def percent(value: float) -> str:
    """Return a percentage for a style, `62.5%`, between 0 and 100."""
    return f"{round(min(100.0, max(0.0, value)), 2):g}%"


def breakable(text: str) -> str:
    """Return a name with zero-width spaces behind dots, slashes and underscores, to break on narrow screens; numbers stay whole."""
    return _JOINTS.sub("\\g<0>\u200b", text)


def pair(label: str, sizes: tuple[float, float], words: tuple[str, str], sub: str = "") -> Pair:
    """Return two sizes as bars, the longer one 100% wide."""
    most = max(*sizes, 1e-30)
    ratio = f"{sizes[0] / sizes[1]:.2f}×" if sizes[1] else "–"
    return Pair(label, *words, (100 * sizes[0] / most, 100 * sizes[1] / most), ratio, sub)


def refused(entries: Iterable[Mapping[str, Any]]) -> list[Refused]:
    """Return the refusals of a report (see `report.refusals`)."""
    return [Refused(e["why"], tuple(e["what"]), e["node"], source(e["source"])) for e in entries]


def source(text: str) -> Source | None:
    """Return a source line in its parts; None where torch kept none."""
    found = _SOURCE.match(text)
    return Source(found["place"], found["function"], (found["code"] or "").strip()) if found else None
