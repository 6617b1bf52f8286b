"""Arrays as calibration data: .npz and .safetensors files by input name, and functions that give batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from fxprune.errors import UsageError
from fxprune.ir import first_line
from fxprune.tools.inputs.calibration.request import Asked, Request
from fxprune.tools.inputs.loaded import call_named, failed_call, find_named

_DATA = "the calibration data"


def check_function(asked: Asked, _model: str, _trust: bool) -> None:
    """Raise UsageError where there is no such function; it is not called."""
    find_named(asked.text, _DATA)


def call_function(request: Request) -> Any:
    """Return what a function returns: batches, with errors of its generator as UsageError."""
    text = request.asked.text
    returned = call_named(text, _DATA)
    # Tensors and mappings are iterable, too; they are passed on whole, to be refused.
    single = isinstance(returned, (Tensor, np.ndarray, Mapping, str)) or not isinstance(returned, Iterable)
    return returned if single else _guarded(text, returned)


def _guarded(text: str, batches: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except Exception as error:
        raise failed_call(text, error) from error


def check_arrays(asked: Asked, _model: str, _trust: bool) -> None:
    """Raise UsageError for a file that can't be read."""
    _arrays(Path(asked.text))


def read_arrays(request: Request) -> Iterator[dict[str, Any]]:
    """Yield the rows of arrays in batches; an array without rows goes into each of them whole.

    Where the size of a batch is fixed, rows that do not fill one are dropped; fewer rows than one batch are left to the check of sizes.
    """
    path, batching = Path(request.asked.text), request.batching
    arrays = _arrays(path)
    cut = {name: array for name, array in arrays.items() if name in batching.inputs and array.ndim}
    counts = {name: len(array) for name, array in cut.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UsageError(
            f"{path}: the first dimension of arrays is their rows, and must be equal, got {told}"
        )
    count, step = max(counts.values(), default=1), batching.step
    used = count - count % step if batching.fixed and count > step else count
    for first in range(0, used, step):
        yield {**arrays, **{name: array[first : first + step] for name, array in cut.items()}}


def _arrays(path: Path) -> Mapping[str, Any]:
    return ARRAYS[path.suffix.lower()](path)


def _npz(path: Path) -> dict[str, Any]:
    try:
        # numpy leaves a file open that it can't read
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:
        raise UsageError(
            f"{path} can't be read as arrays of numbers that numpy.savez wrote; pickled objects are not loaded:"
            f" {first_line(error)}"
        ) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise UsageError(f"{path} can't be read as a .safetensors file: {first_line(error)}") from error


#: suffix: the function that reads arrays, by input name, from such a file
ARRAYS: Mapping[str, Callable[[Path], Mapping[str, Any]]] = MappingProxyType(
    {".npz": _npz, ".safetensors": _safetensors}
)
