"""A Selection: which indices each axis keeps. Plain data, printable, saved as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fxprune.errors import ExportError, SelectionError

FORMAT = "fxprune.selection/1"


@dataclass(frozen=True)
class Selection:
    """Kept indices by axis name, ascending; an axis that is absent keeps all. `sizes` (optional) are the axes' sizes before."""

    axes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked = {name: tuple(_indices(name, kept)) for name, kept in self.axes.items()}
        object.__setattr__(self, "axes", dict(sorted(checked.items())))
        object.__setattr__(
            self, "sizes", {name: self.sizes[name] for name in sorted(self.sizes) if name in checked}
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return tuple(self.axes[name])

    def only(self, names: set[str]) -> Selection:
        """The part of the selection that speaks of these axes."""
        return Selection({name: kept for name, kept in self.axes.items() if name in names}, self.sizes)

    def compose(self, later: Selection) -> Selection:
        """This selection followed by one on what it left, in indices of the original."""
        axes = dict(self.axes)
        sizes = {**later.sizes, **self.sizes}
        for name, kept in later.axes.items():
            axes[name] = [self.axes[name][i] for i in kept] if name in self.axes else kept
        return Selection(axes, sizes)

    def to_json(self) -> str:
        """The same selection always gives the same text."""
        return json.dumps({"format": FORMAT, "axes": self.axes, "sizes": self.sizes}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Selection:
        """A selection from its JSON text; SelectionError where it is none."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise SelectionError(f"this is no selection: not JSON ({error})") from None
        if (
            not isinstance(data, dict)
            or data.get("format") != FORMAT
            or not isinstance(data.get("axes"), dict)
        ):
            raise SelectionError(
                f'this is no selection: expected a JSON object with "format": "{FORMAT}" and "axes"'
            )
        return Selection(data["axes"], data.get("sizes") or {})

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the JSON; a file that exists stays unless `overwrite`."""
        target = Path(path)
        if target.exists() and not overwrite:
            raise ExportError(f"{target} exists; pass overwrite=True to replace it")
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
            file.write(self.to_json())
        Path(file.name).replace(target)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Selection:
        """Read a selection from its JSON file."""
        try:
            return Selection.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SelectionError(f"can't read the selection {path}: {error}") from None


def _indices(name: str, kept: Sequence[int]) -> list[int]:
    """Ascending distinct indices, at least one."""
    if isinstance(kept, (str, bytes)) or not all(
        isinstance(i, int) and not isinstance(i, bool) for i in kept
    ):
        raise SelectionError(f"axis {name}: kept indices must be integers, got {kept!r}")
    if not kept:
        raise SelectionError(
            f"axis {name}: nothing is kept; keep at least one index (removing all is not shrinking)"
        )
    if sorted(set(kept)) != list(kept) or kept[0] < 0:
        raise SelectionError(
            f"axis {name}: kept indices must be ascending, distinct and not negative, got {list(kept)[:8]}"
        )
    return list(kept)
