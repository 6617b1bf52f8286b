"""Folders that `datasets` wrote (`save_to_disk`): columns by the names of inputs, and columns of images, sounds and texts."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.calibration.data import Batch
from fxprune.errors import UsageError
from fxprune.ir import first_line, quiet
from fxprune.tools.inputs.calibration.batching import batched, spread_order
from fxprune.tools.inputs.calibration.images import check_images, decode_image, image_preparation
from fxprune.tools.inputs.calibration.request import Asked, Request, inputs_told, slots
from fxprune.tools.inputs.calibration.sounds import check_rate, decode_sound, sound_preparation
from fxprune.tools.inputs.calibration.texts import (
    checked_length,
    encoded_texts,
    fixed_tokens,
    text_tokenizer,
)

_MARKS = ("state.json", "dataset_info.json", "dataset_dict.json")


def is_dataset_folder(path: Path) -> bool:
    """Return whether a folder is one that `datasets` wrote."""
    return any((path / name).is_file() for name in _MARKS)


def check_dataset_folder(asked: Asked, model: str, trust: bool) -> None:
    """Raise UsageError where the folder can't be read, or holds several parts."""
    columns = _columns(_table(asked))
    if "image" in columns.values():
        check_images(asked, model, trust)


def read_dataset_folder(request: Request) -> Iterator[Batch]:
    """Yield the rows of a table in batches, of equal sizes each."""
    table = _table(request.asked)
    fills = _fills(request, _columns(table))
    things = ((f"row {i}", partial(_decoded, table, i, fills)) for i in spread_order(len(table)))
    rows = (
        {name: value for fill, given in decoded for name, value in fill.make(given).items()}
        for decoded in request.readable(things, "rows")
    )
    batching = request.batching
    return batched(rows, batching, batching.limit(request.asked.rows), request.asked.text)


def _table(asked: Asked) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{asked.text} is read by the package datasets ({error}); install: pip install 'fxprune[train]'"
        ) from error
    with quiet():
        datasets.disable_progress_bars()
        try:
            found = datasets.load_from_disk(asked.text, keep_in_memory=False)
        except Exception as error:
            raise UsageError(f"{asked.text} can't be read as a data set: {first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        parts = ", ".join(str(Path(asked.text) / name) for name in found)
        raise UsageError(f"{asked.text} holds several parts: name one of {parts}")
    if not len(found):
        raise UsageError(f"{asked.text} holds no rows to calibrate on")
    kinds = (datasets.Image, datasets.Audio)
    media = {name: kind for name, kind in found.features.items() if isinstance(kind, kinds)}
    for name, kind in media.items():  # as bytes: decoded here, as files are
        found = found.cast_column(name, type(kind)(decode=False))
    return found


def _columns(table: Any) -> dict[str, str]:
    """Return what each column holds: `image`, `sound`, `text`, or `numbers`."""
    kinds = {"Image": "image", "Audio": "sound"}
    found = {}
    for name, feature in table.features.items():
        text = getattr(feature, "dtype", "") in {"string", "large_string"}
        found[name] = kinds.get(type(feature).__name__, "text" if text else "numbers")
    return found


@dataclass(frozen=True)
class _Column:
    """A column that is read: how a cell is decoded, and how inputs are made of it."""

    name: str
    decode: Callable[[Any], Any]
    make: Callable[[Any], Mapping[str, Tensor]]


def _decoded(table: Any, place: int, fills: Sequence[_Column]) -> list[tuple[_Column, Any]]:
    row = table[place]
    return [(fill, fill.decode(row[fill.name])) for fill in fills]


def _fills(request: Request, columns: Mapping[str, str]) -> list[_Column]:
    """Return the columns that make the inputs: those of their names first, then images, sounds and texts for the inputs that are left."""
    takes = request.program.input_names()
    found = [_numbers(name) for name, kind in columns.items() if name in takes and kind == "numbers"]
    missing = [slot.name for slot in slots(request.program) if slot.name not in {each.name for each in found}]
    makers = {"image": _images, "sound": _sounds, "text": _texts}
    for kind, maker in makers.items():
        names = [name for name, own in columns.items() if own == kind]
        if missing and names and (kind != "text" or "input_ids" in missing):
            found.append(maker(request, _only(request, names, kind, missing)))
    if not found:
        raise UsageError(
            f"{request.asked.text} has the columns {', '.join(columns)}, and the model takes {inputs_told(request.program)}:"
            " rename columns to inputs (rename_column)"
        )
    left = [name for name in columns if name not in {each.name for each in found}]
    if left:
        request.note(f"calibrated without the columns {', '.join(left)}, which are no inputs of the model")
    return found


def _only(request: Request, names: Sequence[str], kind: str, missing: Sequence[str]) -> str:
    """Return the one column of a kind, or the one that is named as an input; UsageError where there are several."""
    named = [name for name in names if name in missing] or names
    if len(named) > 1:
        raise UsageError(
            f"{request.asked.text} has several columns of {kind}s ({', '.join(named)}): keep the one that"
            " the model is to be calibrated on (remove_columns)"
        )
    return named[0]


def _numbers(name: str) -> _Column:
    def array(cell: Any) -> Tensor:
        return torch.from_numpy(np.array(cell))

    return _Column(name, array, lambda value: {name: value})


def _images(request: Request, name: str) -> _Column:
    return _Column(name, lambda cell: decode_image(_file(cell)), image_preparation(request))


def _sounds(request: Request, name: str) -> _Column:
    check_rate(request.asked, request.loaded.name, request.loaded.trusted)

    def decode(cell: Any) -> Any:
        return decode_sound(_file(cell), _suffix(cell))

    return _Column(name, decode, sound_preparation(request))


def _suffix(cell: Mapping[str, Any]) -> str:
    """Return the suffix of a sound: that of its path, or what its first bytes say."""
    held = cell.get("bytes") or b""
    return ".wav" if held[:4] in {b"RIFF", b"RIFX", b"RF64"} else Path(cell.get("path") or "").suffix.lower()


def _file(cell: Mapping[str, Any]) -> Any:
    held = cell.get("bytes")
    return Path(cell["path"]) if held is None else io.BytesIO(held)


def _texts(request: Request, name: str) -> _Column:
    loaded, names = request.loaded, request.program.input_names()
    tokenizer = text_tokenizer(f"{request.asked.text}, column {name},", loaded.name, loaded.trusted)
    exact = fixed_tokens(request.program)
    length = exact or checked_length(request.asked)

    def decode(cell: Any) -> Any:
        if not isinstance(cell, str) or not cell.strip():
            raise ValueError("it holds no text")
        made = encoded_texts([cell], tokenizer, length, names)
        if exact and len(made["input_ids"][0]) != exact:
            raise ValueError(f"its text has not {exact} tokens, the fixed length of the model")
        return {each: torch.tensor(made[each][0]) for each in names if each in made}

    return _Column(name, decode, lambda made: made)
