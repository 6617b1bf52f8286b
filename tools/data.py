"""Labelled text in a folder: `train` and `dev`, each a .tsv, .csv, .jsonl or .parquet file, read by the library `datasets`.

Tab-separated files are read with quoting off: a quotation mark is a character.
"""

import csv
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fxprune.errors import UsageError
from fxprune.lower import first_line, quiet

NEEDS = "reading task data needs more packages ({}); install: pip install 'fxprune[train]'"

# suffix: (the builder of `datasets`, its options); "NA" is a word
_TEXT = {"encoding": "utf-8-sig", "keep_default_na": False}
KINDS: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        ".tsv": ("csv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE, **_TEXT}),
        ".csv": ("csv", _TEXT),
        ".jsonl": ("json", {}),
        ".parquet": ("parquet", {}),
    }
)


@dataclass(frozen=True)
class Rows:
    """Texts, and the number of each one's class."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Rows to train on and rows to be judged on; `classes` are the names of the classes, in order."""

    train: Rows
    dev: Rows
    classes: tuple[str, ...]


def read(folder: Path, text: str = "sentence", label: str = "label", most: int = 0) -> Task:
    """The task in a folder; of `train`, the first `most` rows (0: all). UsageError says what is missing."""
    parts = {name: _table(_file(folder, name), text, label) for name in ("train", "dev")}
    classes = tuple(sorted(set(parts["train"][1])))
    strange = sorted(set(parts["dev"][1]) - set(classes))
    if strange:
        raise UsageError(f"{folder}: dev has the class {strange[0]!r}, which train has not")
    number = {name: i for i, name in enumerate(classes)}
    train, dev = (
        Rows(tuple(texts), tuple(number[label] for label in labels)) for texts, labels in parts.values()
    )
    return Task(Rows(train.texts[: most or None], train.labels[: most or None]), dev, classes)


def _file(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in KINDS if (folder / f"{name}{suffix}").is_file()]
    if len(found) != 1:
        wanted = ", ".join(f"{name}{suffix}" for suffix in KINDS)
        raise UsageError(f"{folder} must hold one of {wanted}; it holds {len(found)}")
    return found[0]


def _table(path: Path, text: str, label: str) -> tuple[list[str], list[str]]:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(NEEDS.format(error)) from error
    builder, options = KINDS[path.suffix]
    with tempfile.TemporaryDirectory() as cache, quiet():
        datasets.disable_progress_bars()
        try:
            table = datasets.load_dataset(
                builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except Exception as error:
            raise UsageError(f"{path} can't be read: {first_line(error)}") from error
    absent = [name for name in (text, label) if name not in table.column_names]
    if absent:
        raise UsageError(f"{path} has no column {absent[0]!r}; columns: {', '.join(table.column_names)}")
    return [str(value) for value in table[text]], [str(value) for value in table[label]]
