"""Selection: the indices that each axis keeps, as plain data that is saved as JSON."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from fxprune.errors import SelectionError
from fxprune.files import about, parse_json, read_text, write_text
from fxprune.ir.summary import HasSummary, Summary, quantity

_FORMAT = "fxprune.selection/1"

# optional entry of the JSON: its type, the type of what is in it, and both in words
_FIELDS: Mapping[str, tuple[type, type, str]] = MappingProxyType(
    {
        "sizes": (dict, int, "an object of integers"),
        "within": (dict, str, "an object of names"),
        "model": (str, str, "a text"),
        "removed": (list, str, "a list of names"),
    }
)

Indices: TypeAlias = Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Selection(HasSummary):
    """Kept indices by axis name, ascending; an axis that is absent keeps all.

    An axis may keep other indices for each unit of another axis (each head its own): then it has a list of lists, one for each unit of the
    axis that `within` names, all of one length. `sizes` (optional) are the axes' sizes before, `model` (optional) the digest of the
    analysis that it was made for: with them, a selection for another model is refused. `removed` are regions (layers, branches) that are
    bypassed first; the axes are those of the remaining program.
    """

    axes: Mapping[str, Indices] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    within: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    removed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked = {name: _checked(name, kept) for name, kept in self.axes.items()}
        object.__setattr__(self, "axes", dict(sorted(checked.items())))
        for extra in ("sizes", "within"):
            given = getattr(self, extra)
            object.__setattr__(self, extra, {name: given[name] for name in sorted(given) if name in checked})

    def __iter__(self) -> Iterator[str]:
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        """The kept indices of an axis; SelectionError where it keeps other indices for each unit of another axis."""
        if is_dependent(self.axes[name]):
            raise SelectionError(
                f"axis {name} keeps other indices for each unit of {self.within.get(name, 'another axis')}"
            )
        return tuple(self.flat(name))

    def rows(self, name: str) -> tuple[tuple[int, ...], ...]:
        """The kept indices of an axis for each unit of the axis it depends on."""
        return tuple(tuple(row) for row in self.axes[name] if not isinstance(row, int))

    def flat(self, name: str) -> list[int]:
        """The kept indices of an axis in one list, row by row where it has rows."""
        return [i for item in self.axes[name] for i in ([item] if isinstance(item, int) else item)]

    def summary(self) -> Summary:
        """How many indices each axis keeps, of how many, and the regions that are removed."""
        gone = f", {quantity(len(self.removed), 'region')} removed" if self.removed else ""
        notes = (f"removed: {', '.join(self.removed)}",) if self.removed else ()
        rows = tuple(self._counts(name) for name in self)
        columns = ("axis", "kept", "of", "for each unit of")
        return Summary(f"Selection: {quantity(len(self), 'axis', 'axes')}{gone}", columns, rows, notes)

    def _counts(self, name: str) -> tuple[str, ...]:
        kept = self.axes[name]
        outer = self.within.get(name, "another axis") if is_dependent(kept) else ""
        count = len(self.rows(name)[0]) if outer else len(kept)
        return name, str(count), str(self.sizes.get(name, "?")), outer

    def only(self, names: set[str]) -> Selection:
        """The part of the selection for these axes, without `model`."""
        axes = {name: kept for name, kept in self.axes.items() if name in names}
        return Selection(axes, self.sizes, self.within, removed=self.removed)

    def compose(self, later: Selection) -> Selection:
        """This selection followed by one on the remaining program, in indices of the original."""
        axes = dict(self.axes)
        sizes, within = {**later.sizes, **self.sizes}, {**later.within, **self.within}
        for name in later:
            axes[name] = self._after(name, later)
        model = "" if later.removed and self.axes else self.model or later.model
        return Selection(axes, sizes, within, model, (*self.removed, *later.removed))

    def _after(self, name: str, later: Selection) -> Indices:
        """The indices that an axis keeps after both selections."""
        mine, theirs = self.axes.get(name), later.axes[name]
        outer = self.axes.get(later.within.get(name, "")) if is_dependent(theirs) else None
        if outer is None and mine is None:
            return theirs
        if is_dependent(theirs):
            return self._after_rows(name, later)
        last = later[name]
        if is_dependent(mine):
            return [[row[i] for i in last] for row in self.rows(name)]
        return [self[name][i] for i in last]

    def _after_rows(self, name: str, later: Selection) -> Indices:
        """Rows for the kept units of the outer axis, extended to rows for all units of the original.

        A removed unit gets the later row of the first kept unit, so that all rows have one length.
        """
        rows, outer = later.rows(name), later.within.get(name, "")
        kept = self[outer] if outer in self.axes else tuple(range(len(rows)))
        count = self.sizes.get(outer, (max(kept) + 1) if kept else 0) if outer in self.axes else len(rows)
        unit = {original: place for place, original in enumerate(kept)}
        return [self._row(name, original, rows[unit.get(original, 0)]) for original in range(count)]

    def _row(self, name: str, unit: int, row: Sequence[int]) -> list[int]:
        if name not in self.axes:
            return list(row)
        mine = self.rows(name)[unit] if is_dependent(self.axes[name]) else self[name]
        return [mine[i] for i in row]

    def to_json(self) -> str:
        """The selection as JSON; equal selections give equal texts."""
        data: dict[str, Any] = {"format": _FORMAT, "axes": self.axes, "sizes": self.sizes}
        more = (("within", self.within), ("model", self.model), ("removed", self.removed))
        data |= {key: value for key, value in more if value}
        return json.dumps(data, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Selection:
        """A selection from its JSON text; SelectionError where the text is not one."""
        data = parse_json(text, (_FORMAT, "axes", dict), "selection", SelectionError)
        sizes, within, model, removed = (_field(data, name) for name in _FIELDS)
        return Selection(data["axes"], sizes, within, model, tuple(removed))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the selection as JSON; ExportError where the file exists, unless `overwrite`."""
        write_text(path, self.to_json(), overwrite)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Selection:
        """Read a selection from its JSON file."""
        with about(path):
            return Selection.from_json(read_text(path, "selection", SelectionError))


def _field(data: Mapping[str, Any], name: str) -> Any:
    """Return an optional entry of a selection's JSON; SelectionError where it has another type, or something in it has."""
    kind, inner, wanted = _FIELDS[name]
    found = kind() if data.get(name) is None else data[name]
    values = found.values() if isinstance(found, dict) else found
    if not isinstance(found, kind) or not all(type(value) is inner for value in values):
        raise SelectionError(f'this is no selection: "{name}" must be {wanted}, got {reprlib.repr(found)}')
    return found


def is_dependent(kept: Indices | None) -> bool:
    """Whether an axis keeps other indices for each unit of another one."""
    return kept is not None and len(kept) > 0 and not isinstance(kept[0], int)


def _checked(name: str, kept: Indices) -> tuple[Any, ...]:
    if not isinstance(kept, Sequence) or isinstance(kept, (str, bytes)):
        raise SelectionError(
            f"axis {name}: kept indices must be a list of integers, got {reprlib.repr(kept)}"
        )
    if not is_dependent(kept):
        return tuple(_indices(name, kept))
    rows = tuple(tuple(_indices(name, row)) for row in kept)
    if len({len(row) for row in rows}) > 1:
        raise SelectionError(
            f"axis {name}: every unit must keep equally many indices, got {reprlib.repr([len(row) for row in rows])}"
        )
    return rows


def _indices(name: str, kept: Any) -> list[int]:
    """The indices as a list; SelectionError unless they are ascending, distinct and not negative, at least one."""
    is_list = isinstance(kept, Sequence) and not isinstance(kept, (str, bytes))
    if not is_list or not all(isinstance(i, int) and not isinstance(i, bool) for i in kept):
        raise SelectionError(f"axis {name}: kept indices must be integers, got {reprlib.repr(kept)}")
    if not kept:
        raise SelectionError(
            f"axis {name}: nothing is kept; keep at least one index (removing all is not shrinking)"
        )
    if sorted(set(kept)) != list(kept) or kept[0] < 0:
        raise SelectionError(
            f"axis {name}: kept indices must be ascending, distinct and not negative, got {list(kept)[:8]}"
        )
    return list(kept)
