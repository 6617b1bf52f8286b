"""Tables of task data in a folder: `train` and `dev`, each a file of one of KINDS.

Delimited files are texts, in every column of every row: `01` and `1` are two classes. JSON is read here as well, other kinds by the
library `datasets`.
"""

import csv
import reprlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fxprune.errors import UsageError
from fxprune.files import read_text, strict_json
from fxprune.ir import first_line, quiet

_NEEDS = "reading task data needs more packages ({}); install: pip install 'fxprune[train]'"

# suffix: options of csv.reader; in a tab-separated file a quotation mark is a character
_DELIMITED: Mapping[str, dict[str, Any]] = MappingProxyType(
    {".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}, ".csv": {"strict": True}}
)
_LONGEST_CELL = 2**30
_SHOWN = 12  # classes that are listed

# suffix: (the builder of `datasets`, its options)
KINDS: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        **dict.fromkeys(_DELIMITED, ("", {})),
        ".jsonl": ("", {}),
        ".parquet": ("parquet", {}),
        ".json": ("", {}),
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
    """Return the classes of train, sorted as texts; UsageError where one is empty, or dev has another."""
    for name, labels in found.items():
        if empty := [number for number, label in enumerate(labels, 1) if not label.strip()]:
            raise UsageError(f"{name} has {len(empty)} empty classes; the first is number {empty[0]}")
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


def describe_classes(found: Mapping[str, Sequence[str]]) -> str:
    """Return the number of rows of each class, most frequent first: `train: b 3, a 1; dev: a 1, b 1`."""
    return "; ".join(f"{name}: {_counts(labels)}" for name, labels in found.items())


def _counts(labels: Sequence[str]) -> str:
    counts = Counter(labels).most_common()
    more = [f"{len(counts) - _SHOWN} more"] if len(counts) > _SHOWN else []
    return ", ".join([*(f"{label} {count}" for label, count in counts[:_SHOWN]), *more])


def read_table(path: Path, columns: Sequence[str], names: Sequence[str] = ()) -> list[list[Any]]:
    """Read some columns of a file; `names` are those of all its columns where it has no header.

    UsageError where a column is missing, in the file or in a row.
    """
    reader = _READERS.get(path.suffix)
    found = reader(path, names) if reader else _loaded(path)
    absent = [name for name in columns if name not in found]
    if absent:
        raise UsageError(f"{path} has no column {absent[0]!r}; columns: {', '.join(found)}")
    read = [list(found[name]) for name in columns]
    for name, values in zip(columns, read, strict=True):
        if None in values:
            raise UsageError(f"{path}, row {values.index(None) + 1}: no {name!r}")
    return read


def _delimited(path: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return all columns of a delimited file by name; UsageError where a row has more or fewer of them than the header."""
    csv.field_size_limit(_LONGEST_CELL)
    rows: list[list[str]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, **_DELIMITED[path.suffix])
            header = list(names) or next(reader, [])
            for row in reader:
                if row and len(row) != len(header):
                    raise UsageError(f"{path}, line {reader.line_num}: {_ragged(row, header)}")
                rows += [row] if row else []
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise UsageError(f"{path} has two columns with the name {twice[0]!r}")
    return dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(header, ())


def _ragged(row: Sequence[str], header: Sequence[str]) -> str:
    extra = ", the last one empty" if len(row) > len(header) and not row[-1] else ""
    return f"{len(row)} columns{extra}, and the header has {len(header)} ({', '.join(header)})"


def _objects(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return all columns of a file of JSON objects, one a line, or below "data"; a row without a column has None there.

    Read here, since `datasets` ends the process at some files that are no such objects.
    """
    rows = []
    for place, entry in _entries(path):
        if not isinstance(entry, dict):
            raise UsageError(f"{path}, {place}: expected an object, got {reprlib.repr(entry)}")
        rows.append(entry)
    return {
        name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)
    }


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place of each entry of a JSON file, in words, and the entry."""
    text = read_text(path, "table", UsageError).removeprefix("\ufeff")
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", _parsed(path, f", line {number}", line)
        return
    told = _parsed(path, "", text)
    data = told.get("data") if isinstance(told, dict) else None
    if not isinstance(data, list):
        raise UsageError(f'{path}: expected an object with a list "data"')
    yield from ((f"entry {number}", entry) for number, entry in enumerate(data, 1))


def _parsed(path: Path, place: str, text: str) -> Any:
    try:
        return strict_json(text)
    except ValueError as error:
        raise UsageError(f"{path}{place}: not JSON ({error})") from None


#: suffix: the function that reads such a file here
_READERS: Mapping[str, Callable[[Path, Sequence[str]], Mapping[str, Sequence[Any]]]] = MappingProxyType(
    {**dict.fromkeys(_DELIMITED, _delimited), ".jsonl": _objects, ".json": _objects}
)


def _loaded(path: Path) -> dict[str, Any]:
    """Return all columns of a file by name, as `datasets` reads them."""
    if not path.stat().st_size:
        raise UsageError(f"{path} is empty")
    try:
        import datasets
    except ImportError as error:
        raise UsageError(_NEEDS.format(error)) from error
    builder, options = KINDS[path.suffix]
    with tempfile.TemporaryDirectory() as cache, quiet():
        datasets.disable_progress_bars()
        try:
            found = datasets.load_dataset(
                builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except Exception as error:
            raise UsageError(f"{path} can't be read: {first_line(error.__cause__ or error)}") from error
    return {name: found[name] for name in found.column_names}
