"""Forms of calibration data: what `--calibration` may name, how it is recognised, and what reads it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fxprune.calibration import Calibration, check_calibration
from fxprune.calibration.data import as_batches
from fxprune.errors import UsageError
from fxprune.files import about
from fxprune.ir import Program
from fxprune.tools.inputs.calibration.arrays import (
    ARRAYS,
    call_function,
    check_arrays,
    check_function,
    read_arrays,
)
from fxprune.tools.inputs.calibration.dataset_folder import (
    check_dataset_folder,
    is_dataset_folder,
    read_dataset_folder,
)
from fxprune.tools.inputs.calibration.folders import (
    IMAGES,
    check_sound_folder,
    is_image_folder,
    is_sound_folder,
    read_image_folder,
    read_sound_folder,
)
from fxprune.tools.inputs.calibration.images import check_images
from fxprune.tools.inputs.calibration.normalization import parse_normalization
from fxprune.tools.inputs.calibration.request import NORMALIZATION_OPTION, SAMPLING_OPTION, Asked, Request
from fxprune.tools.inputs.calibration.sounds import SOUNDS
from fxprune.tools.inputs.calibration.texts import check_texts, read_texts
from fxprune.tools.inputs.loaded import Loaded

_PYTHON = "py:PACKAGE.MODULE:FUNCTION"


def _told(suffixes: Iterable[str]) -> str:
    return ", ".join(suffix.removeprefix(".") for suffix in suffixes)


@dataclass(frozen=True)
class Form:
    """Form of calibration data: how it is written, what it is, what it is recognised by, and the options that it looks at.

    `check` refuses, before there is a program, what can't be read; `read` yields batches, and may be called again.
    """

    written: str
    help: str
    fits: Callable[[Path], bool]
    check: Callable[[Asked, str, bool], None]
    read: Callable[[Request], Any]
    options: frozenset[str] = frozenset()


FORMS = (
    Form(
        _PYTHON,
        "a function that returns an iterable of batches (a list, a DataLoader): mappings of input names to tensors, or tensors",
        lambda path: False,  # told by its prefix, before anything is taken for a path
        check_function,
        call_function,
    ),
    Form(
        "FOLDER of images",
        f"{_told(IMAGES)}, in subfolders too; prepared by the image processor of an hf: folder, else resized, cropped and normalised",
        is_image_folder,
        check_images,
        read_image_folder,
        frozenset({NORMALIZATION_OPTION}),
    ),
    Form(
        "FOLDER of sounds",
        f"{_told(SOUNDS)}, in subfolders too; prepared by the feature extractor of an hf: folder, else resampled, and cut or padded",
        is_sound_folder,
        check_sound_folder,
        read_sound_folder,
        frozenset({SAMPLING_OPTION}),
    ),
    Form(
        "FOLDER of a data set",
        "as save_to_disk of the package datasets wrote it: columns by input name, and columns of images, sounds and texts as above",
        is_dataset_folder,
        check_dataset_folder,
        read_dataset_folder,
        frozenset({NORMALIZATION_OPTION, SAMPLING_OPTION}),
    ),
    Form(
        "FILE.npz, FILE.safetensors",
        "arrays by input name, whose first dimension is rows",
        lambda path: path.is_file() and path.suffix.lower() in ARRAYS,
        check_arrays,
        read_arrays,
    ),
    Form(
        "FILE",
        "any other file: text in UTF-8, one a line, for the tokenizer of the model's folder",
        lambda path: path.is_file() and path.suffix.lower() not in ARRAYS,
        check_texts,
        read_texts,
    ),
)
"""What `--calibration` may name; exactly one form must fit."""


def check_source(asked: Asked, model: str, trust: bool = False) -> None:
    """Raise UsageError, before there is a program, where options name no data that can be read for a MODEL; no function is called."""
    if asked.normalization:
        parse_normalization(asked.normalization)
    form = form_of(asked.text)
    given = {NORMALIZATION_OPTION: asked.normalization, SAMPLING_OPTION: asked.sampling_rate}
    for option, value in given.items():
        if value and option not in form.options:
            users = ", ".join(row.written for row in FORMS if option in row.options)
            raise UsageError(f"{option} is for a {users}; {asked.option} {asked.text} is a {form.written}")
    form.check(asked, model, trust)


def form_of(text: str) -> Form:
    """Return the form that a text or a path has; UsageError where it has none or several."""
    if text.startswith("py:"):
        return FORMS[0]
    path = Path(text)
    fitting = [form for form in FORMS if form.fits(path)]
    if len(fitting) == 1:
        return fitting[0]
    expected = ", ".join(form.written for form in FORMS)
    if fitting:
        several = " and a ".join(form.written for form in fitting)
        raise UsageError(f"{text} is a {several}; give a folder that holds one of them")
    if path.is_dir():
        raise UsageError(f"the folder {text} holds nothing to calibrate on; expected {expected}")
    raise UsageError(f"there is no file or folder {text} to calibrate on; expected {expected}")


@dataclass(frozen=True, eq=False)
class CalibrationSource:
    """Batches of calibration data, read anew at each iteration: for data larger than memory."""

    request: Request
    read: Callable[[Request], Any] = field(repr=False)

    def __iter__(self) -> Iterator[Any]:
        yield from as_batches(self.read(self.request))


def read_calibration(asked: Asked, program: Program, loaded: Loaded) -> Calibration:
    """Return the calibration data that options name: at most `rows` of them in memory, the others `unread`.

    UsageError describes a fault of the option, the file, or the data.
    """
    form, request = form_of(asked.text), Request(asked, program, loaded)
    with about(asked.text):
        found = check_calibration(
            program, CalibrationSource(request, form.read), request.batching.limit(asked.rows)
        )
    return replace(found, notes=(*request.all_notes(), *found.notes), images=tuple(request.images))
