"""Files: text written whole or not at all, parsed with one-line errors, and drafts that are moved into place."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxprune.errors import ExportError, FxpruneError

_NAME = 200  # letters of a file's name that are shown
_DIGITS = 30  # of an integer in JSON: more than any size needs


def write_text(path: str | os.PathLike[str], text: str, overwrite: bool = False) -> None:
    """Write a text file through a draft beside it; ExportError where the file exists, unless `overwrite`."""
    target = Path(path)
    if os.path.lexists(target) and not overwrite:
        raise ExportError(f"{target} exists; pass overwrite=True to replace it")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def read_text(path: str | os.PathLike[str], what: str, error: type[FxpruneError]) -> str:
    """Return the text of a UTF-8 file; raise `error`, with `what` as the file's kind, where it can't be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as failure:
        raise error(f"can't read the {what} {str(path)[:_NAME]}: {failure.strerror}") from None
    except ValueError as failure:  # no UTF-8, or a path with a zero byte
        raise error(f"can't read the {what} {str(path)[:_NAME]!r}: {failure}") from None


@contextlib.contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the name of a file, or of a model, in front of the errors of the block, which know only what is in it."""
    try:
        yield
    except FxpruneError as error:
        if str(path)[:_NAME] in str(error):
            raise
        raise type(error)(f"{str(path)[:_NAME]}: {error}") from error.__cause__


def strict_json(text: str) -> Any:
    """Return the value of a JSON text; ValueError, with a short reason, also for a key twice, deep nesting, and endless numbers."""
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} occurs twice")
    return data


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def parse_json(
    text: str, form: tuple[str, str, type], what: str, error: type[FxpruneError]
) -> dict[str, Any]:
    """Return the JSON object of a text; raise `error`, with `what` as its kind, where it has another form.

    `form` is the required value of "format", a required key, and the type of that key's value.
    """
    name, key, kind = form
    try:
        data = strict_json(text)
    except ValueError as failure:
        raise error(f"this is no {what}: not JSON ({failure})") from None
    if not isinstance(data, dict) or data.get("format") != name or type(data.get(key)) is not kind:
        raise error(f'this is no {what}: expected a JSON object with "format": "{name}" and "{key}"')
    return data


def file_bytes(path: Path) -> int:
    """Return the size of a model file in bytes, including its `.data` file of weights where one lies beside it."""
    weights = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)


@contextlib.contextmanager
def draft_file(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yield a path in a temporary folder beside the target; move the files written there into place at the end.

    Nothing is moved where the body raises. ExportError where the target exists (unless `overwrite`) or its folder does not.
    """
    target = Path(path)
    if os.path.lexists(target) and not overwrite:
        raise ExportError(f"{target} exists; give another name, or allow overwriting")
    if not target.parent.is_dir():
        raise ExportError(f"the folder {target.parent} does not exist; make it first")
    with tempfile.TemporaryDirectory(prefix=".fxprune-", dir=target.parent) as folder:
        yield Path(folder) / target.name
        (target.parent / f"{target.name}.data").unlink(missing_ok=True)
        # The model comes last: weights without a model are harmless, a model without its weights is not.
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == target.name):
            file.replace(target.parent / file.name)
