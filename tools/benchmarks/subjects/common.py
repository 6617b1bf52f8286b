"""Helpers shared by the subjects: types of batches, choice of an output, paths of task data and packages, random indices."""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.errors import UsageError

Inputs: TypeAlias = dict[str, Tensor]
"""Inputs by the program's names; the first dimension of each is that of the rows."""

RunFunction: TypeAlias = Callable[[Inputs], Any]
"""Function that runs a model on a batch: `lambda batch: program(**batch)`, an nn.Module likewise, or an ONNX Runtime session."""

DATA_VARIABLE = "FXPRUNE_DATA"
DEFAULT_FOLDER = Path(__file__).resolve().parents[4] / "shared" / "data"


def task_data(name: str) -> Path:
    """The path of a file of task data (`STS-benchmark/sts-test.csv`) in $FXPRUNE_DATA, else in ../shared/data; UsageError if missing."""
    folder = Path(os.environ.get(DATA_VARIABLE) or DEFAULT_FOLDER)
    if not (folder / name).is_file():
        raise UsageError(f"there is no {folder / name}; set {DATA_VARIABLE} to the folder that holds {name}")
    return folder / name


def package(name: str, install: str) -> Path:
    """The folder of a package, which is not imported; UsageError, with the command `install`, where it is not installed."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"the package {name} is not installed; install: {install}")
    return Path(found.submodule_search_locations[0])


def pick_output(outputs: Any, name: str) -> Tensor:
    """One output in float32: an entry or an attribute of that name, the first of a sequence, or the tensor itself; UsageError if none."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get(name)
    elif hasattr(outputs, name):
        outputs = getattr(outputs, name)
    elif isinstance(outputs, Sequence) and outputs:
        outputs = outputs[0]
    if outputs is None or isinstance(outputs, (str, Sequence)):
        raise UsageError(f"the model has no output {name!r}")
    return torch.as_tensor(outputs).float()


def sample_indices(count: int, rows: int, seed: int, what: str) -> list[int]:
    """`rows` different random indices below `count`, by a seed; UsageError unless `rows` is from 1 to `count`."""
    if not 0 < rows <= count:
        raise UsageError(f"rows must be from 1 to {count}, the number of {what}; got {rows}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [int(i) for i in order[:rows]]
