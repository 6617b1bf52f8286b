"""Bars for a template: what is left of each layer's heads, dims, neurons, channels, ranks and parameters, one row per layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fxprune.tools.reports.inventory import SHOWN
from fxprune.tools.reports.report import scaled
from fxprune.tools.reports.templates import Pair, pair

#: role: (what its column is called, what one unit is), in the order of the columns
WORDS: dict[str, tuple[str, str]] = {
    "heads": ("heads", "head"),
    "qk": ("query/key dims", "dim"),
    "v": ("value dims", "dim"),
    "ffn": ("neurons", "neuron"),
    "experts": ("experts", "expert"),
    "channels": ("channels", "channel"),
    "groups": ("groups", "group"),
    "rank": ("ranks", "rank"),
    "blocks": ("blocks", "block"),
    "hidden": ("hidden width", "dim"),
    "other": ("other", "unit"),
}
COUNTED = ("heads", "experts", "groups")
"""Roles whose units are drawn one by one."""


@dataclass(frozen=True)
class Bar:
    """An axis: its name, what is left of it in words, and its drawing.

    `track` is its whole size as a percentage of the largest axis of its column, `fill` what is left as a percentage of the track. Where
    units are few, `units` is for each whether it stays; `heights` are percentages: what each unit of another axis keeps of this one.
    """

    name: str
    text: str
    track: float
    fill: float
    title: str
    units: tuple[bool, ...] = ()
    heights: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Row:
    """A layer: bars by column, and its parameters; or, where there are no layers, one axis."""

    name: str
    gone: bool
    cells: tuple[tuple[Bar, ...], ...]
    parameters: Pair | None


@dataclass(frozen=True)
class _BarTable:
    """Columns (role, words) and rows; `scale` is the size of a full bar of each column, in words."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[_Row, ...]
    scale: tuple[str, ...]
    counted: bool


def layer_rows(layers: Sequence[Mapping[str, Any]], axes: Sequence[Mapping[str, Any]]) -> _BarTable:
    """Return rows for layers and for what lies in none, from plain data (see `inventory`); `dims` are what each head keeps of an axis."""
    roles = [role for role in WORDS if any(_role(axis) == role for axis in axes)]
    most = {role: max(axis["before"] for axis in axes if _role(axis) == role) for role in roles}
    named = [layer for layer in layers if layer["name"]]
    heaviest = max((layer["parameters"]["before"] for layer in named), default=0)
    rows = [_row(layer, axes, roles, most, heaviest) for layer in named]
    rows += [_axis_row(axis, roles, most) for axis in axes if not axis["layer"]]
    rest = [layer for layer in layers if named and not layer["name"]]
    rows += [_Row("outside of layers", False, ((),) * len(roles), _parameters(layer, 0)) for layer in rest]
    columns = tuple((role, WORDS[role][0]) for role in roles)
    return _BarTable(columns, tuple(rows), tuple(_count(most[role], role) for role in roles), bool(named))


def _role(axis: Mapping[str, Any]) -> str:
    return axis["role"] if axis["role"] in WORDS else "other"


def _row(
    layer: Mapping[str, Any],
    axes: Sequence[Mapping[str, Any]],
    roles: Sequence[str],
    most: Mapping[str, int],
    heaviest: int,
) -> _Row:
    own = [axis for axis in axes if axis["layer"] == layer["name"]]
    cells = tuple(tuple(_bar(a, most, layer["name"]) for a in own if _role(a) == role) for role in roles)
    return _Row(layer["name"], layer["removed"], cells, _parameters(layer, heaviest))


def _axis_row(axis: Mapping[str, Any], roles: Sequence[str], most: Mapping[str, int]) -> _Row:
    cells = tuple((_bar(axis, most, ""),) if _role(axis) == role else () for role in roles)
    return _Row(axis["name"], axis["after"] == 0, cells, None)


def _parameters(layer: Mapping[str, Any], heaviest: int) -> Pair:
    """Return the parameters, with bars as shares of the heaviest layer; without width where there is nothing to compare with."""
    counts = layer["parameters"]["before"], layer["parameters"]["after"]
    both = pair(layer["name"], counts, (scaled(counts[0], counts[0]), scaled(counts[1], counts[1])))
    share = max(counts) / heaviest if heaviest else 0.0
    return replace(both, widths=(both.widths[0] * share, both.widths[1] * share))


def _bar(axis: Mapping[str, Any], most: Mapping[str, int], layer: str) -> Bar:
    before, after, role = axis["before"], axis["after"], _role(axis)
    name = axis["name"].removeprefix(f"{layer}.") if layer else axis["name"]
    track = 100 * before / max(1, most[role])
    if after is None:
        return Bar(name, f"? of {before:,}", track, 0.0, f"{name}: what is left of {before} can't be told")
    text = f"{after:,} of {before:,}"
    title = f"{name}: {text} left"
    dims = axis.get("dims")
    if dims:
        words = ", ".join(map(str, dims))
        text = f"{sum(dims):,} of {before * len(dims):,}"
        return Bar(name, text, track, 0.0, f"{name}: {words} of {before}", heights=tuple(100 * d / before for d in dims))  # fmt: skip
    kept = axis.get("kept", _all_or_none(axis))
    if kept is None:
        return Bar(name, text, track, 100 * after / before, title)
    gone = [i for i in range(before) if i not in set(kept)]
    words = f"; without {', '.join(map(str, gone))}" if gone else ""
    units = tuple(i in set(kept) for i in range(before))
    return Bar(name, text, track, 100 * after / before, title + words, units)


def _all_or_none(axis: Mapping[str, Any]) -> range | None:
    """Return the units that stay of an axis with a role in COUNTED, if all of them stay or none does; else None."""
    counted = _role(axis) in COUNTED and axis["before"] <= SHOWN
    return range(axis["after"]) if counted and axis["after"] in (0, axis["before"]) else None


def _count(size: int, role: str) -> str:
    """Return a count with its unit: `12 heads`."""
    return f"{size:,} {WORDS[role][1]}{'s' if size != 1 else ''}"
