"""Folders of images and of sounds: found in all subfolders, read one by one, and no further than is asked for."""

import os
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fxprune.calibration.data import Batch
from fxprune.tools.inputs.calibration.batching import batched, spread_order
from fxprune.tools.inputs.calibration.images import decode_image, image_preparation
from fxprune.tools.inputs.calibration.request import Asked, Request
from fxprune.tools.inputs.calibration.sounds import (
    SOUNDS,
    check_decoder,
    check_rate,
    decode_sound,
    sound_preparation,
)

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Suffixes of images."""


def files_below(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Yield the files of these suffixes in a folder and its subfolders; hidden ones are left out."""
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        shown = (Path(place, name) for name in names if not name.startswith("."))
        yield from (path for path in shown if path.suffix.lower() in suffixes)


def is_image_folder(path: Path) -> bool:
    """Return whether a folder holds images."""
    return path.is_dir() and any(files_below(path, IMAGES))


def is_sound_folder(path: Path) -> bool:
    """Return whether a folder holds sounds."""
    return path.is_dir() and any(files_below(path, SOUNDS))


def check_sound_folder(asked: Asked, model: str, trust: bool) -> None:
    """Raise UsageError where what reads sounds is missing, or nobody says at which rate the model hears."""
    for suffix in sorted({path.suffix.lower() for path in files_below(Path(asked.text), SOUNDS)}):
        check_decoder(suffix)
    check_rate(asked, model, trust)


def read_image_folder(request: Request) -> Iterator[Batch]:
    """Yield the images of a folder in batches."""
    return _read(request, IMAGES, "images", decode_image, image_preparation(request))


def read_sound_folder(request: Request) -> Iterator[Batch]:
    """Yield the sounds of a folder in batches."""

    def decode(path: Path) -> Any:
        return decode_sound(path, path.suffix.lower())

    return _read(request, SOUNDS, "sounds", decode, sound_preparation(request))


def _read(
    request: Request,
    suffixes: Collection[str],
    what: str,
    decode: Callable[[Path], Any],
    prepare: Callable[[Any], Any],
) -> Iterator[Batch]:
    folder, batching = Path(request.asked.text), request.batching
    files = sorted(files_below(folder, suffixes))
    order = (files[i] for i in spread_order(len(files)))
    things = ((str(path.relative_to(folder)), partial(decode, path)) for path in order)
    rows = map(prepare, request.readable(things, what))
    return batched(rows, batching, batching.limit(request.asked.rows), str(folder))
