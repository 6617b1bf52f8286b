"""Tables of task data in a folder: `train` and `dev`, each a file of one of KINDS, read by the library `datasets`.

Tab-separated files are read with quoting off: a quotation mark is a character.
"""

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fxprune.errors import UsageError
from fxprune.ir import first_line, quiet

_NEEDS = "reading task data needs more packages ({}); install: pip install 'fxprune[train]'"

# suffix: (the builder of `datasets`, its options); "NA" is read as a word
_TEXT = {"encoding": "utf-8-sig", "keep_default_na": False}
KINDS: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        ".tsv": ("csv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE, **_TEXT}),
        ".csv": ("csv", _TEXT),
        ".jsonl": ("json", {}),
        ".parquet": ("parquet", {}),
        ".json": ("json", {"field": "data"}),
        ".txt": ("text", {"encoding": "utf-8"}),
    }
)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts, or pairs of texts, and the class number of each."""

    texts: tuple[Any, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class LabelledTables:
    """Rows to train on and rows to evaluate on; `classes` are the names of the classes, in order."""

    train: LabelledTexts
    dev: LabelledTexts
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """The columns of texts, of second texts (empty: none) and of labels; `names` are those of all columns where files have no header."""

    text: str = "sentence"
    label: str = "label"
    second: str = ""
    names: tuple[str, ...] = ()


def read_task(folder: Path, columns: Columns | None = None, most: int = 0) -> LabelledTables:
    """Read the task in a folder; of `train`, the first `most` rows (0: all). UsageError names what is missing."""
    columns = columns or Columns()
    parts = {name: _part(folder, name, columns) for name in ("train", "dev")}
    classes = classes_of({name: labels for name, (_, labels) in parts.items()})
    number = {name: i for i, name in enumerate(classes)}
    train, dev = (
        LabelledTexts(tuple(texts[:rows]), tuple(number[label] for label in labels[:rows]))
        for (texts, labels), rows in zip(parts.values(), (most or None, None), strict=True)
    )
    return LabelledTables(train, dev, classes)


def classes_of(found: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the classes of train, sorted; UsageError where dev has another."""
    classes = tuple(sorted(set(found["train"])))
    strange = sorted(set(found["dev"]) - set(classes))
    if strange:
        raise UsageError(f"dev has the class {strange[0]!r}, which train has not")
    return classes


def _part(folder: Path, name: str, columns: Columns) -> tuple[list[Any], list[str]]:
    wanted = [columns.text, *([columns.second] if columns.second else ()), columns.label]
    *texts, labels = read_table(table_file(folder, name), wanted, columns.names)
    strings = [[str(value) for value in values] for values in texts]
    paired: list[Any] = list(zip(*strings, strict=True)) if columns.second else strings[0]
    return paired, [str(value) for value in labels]


def table_file(folder: Path, name: str) -> Path:
    """Return the one file of this name; UsageError where there is none, or more than one."""
    found = [folder / f"{name}{suffix}" for suffix in KINDS if (folder / f"{name}{suffix}").is_file()]
    if len(found) != 1:
        wanted = ", ".join(f"{name}{suffix}" for suffix in KINDS)
        raise UsageError(f"{folder} must hold one of {wanted}; it holds {len(found)}")
    return found[0]


def read_table(path: Path, columns: Sequence[str], names: Sequence[str] = ()) -> list[list[Any]]:
    """Read some columns of a file; `names` are those of all its columns where it has no header. UsageError where one is missing."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(_NEEDS.format(error)) from error
    builder, options = KINDS[path.suffix]
    options = {**options, "column_names": list(names)} if names and builder == "csv" else options
    with tempfile.TemporaryDirectory() as cache, quiet():
        datasets.disable_progress_bars()
        try:
            found = datasets.load_dataset(
                builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except Exception as error:
            raise UsageError(f"{path} can't be read: {first_line(error)}") from error
    absent = [name for name in columns if name not in found.column_names]
    if absent:
        raise UsageError(f"{path} has no column {absent[0]!r}; columns: {', '.join(found.column_names)}")
    return [list(found[name]) for name in columns]
