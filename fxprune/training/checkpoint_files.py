"""Checkpoint files of a run: tensors as safetensors, all else as JSON. Reading them runs no code, whoever wrote them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from fxprune.errors import UsageError
from fxprune.files import parse_json, read_text

_FORMAT = "fxprune.checkpoint/1"
_TENSORS, _NUMBERS = "tensors.safetensors", "checkpoint.json"

_STEP = re.compile(r"step-(\d{1,15})")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Content of a checkpoint: tensors by name, and plain data, of which `step` is the number of steps that are done."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint into a folder of checkpoints: a draft first, which then takes the place of all others."""
    draft = folder / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(_unshared(snapshot.tensors), draft / _TENSORS)
    text = json.dumps({"format": _FORMAT, **snapshot.numbers}, default=float)  # metrics may be NumPy's
    (draft / _NUMBERS).write_text(text + "\n", encoding="utf-8")
    _place(draft, folder, snapshot.numbers["step"])


def newest_snapshot(folder: Path) -> Path | None:
    """Return the checkpoint of the most steps in a folder, if there is one."""
    found = _steps(folder)
    return found[max(found)] if found else None


def read_snapshot(path: Path) -> Snapshot:
    """Read a checkpoint; UsageError where it is of another form, as those of earlier versions are."""
    if not (path / _NUMBERS).is_file() or not (path / _TENSORS).is_file():
        raise UsageError(f"a checkpoint is {_TENSORS} and {_NUMBERS}; other files are not read")
    text = read_text(path / _NUMBERS, "checkpoint", UsageError)
    numbers = parse_json(text, (_FORMAT, "step", int), "checkpoint", UsageError)
    try:
        tensors = load_file(path / _TENSORS)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{_TENSORS} can't be read: {error}") from error
    return Snapshot(tensors, numbers)


def pack_snapshot(snapshot: Snapshot) -> bytes:
    """Return a checkpoint as bytes, for another process of the same run."""
    text = json.dumps(snapshot.numbers, default=float).encode()
    return text + b"\n" + save(_unshared(snapshot.tensors))


def unpack_snapshot(content: bytes) -> Snapshot:
    """Return the checkpoint that `pack_snapshot` made into bytes."""
    text, _, tensors = content.partition(b"\n")
    return Snapshot(load(tensors), json.loads(text))


def check_snapshots(folder: Path) -> None:
    """Raise UsageError where the newest checkpoint in the folder of a run, or of its teacher, can't be read."""
    for kept in sorted(folder.glob("*/")):
        found = newest_snapshot(kept)
        if found:
            with about_snapshot(found):
                read_snapshot(found)


@contextlib.contextmanager
def about_snapshot(path: Path) -> Iterator[None]:
    """Say of which checkpoint the errors of the block are, and what to do."""
    try:
        yield
    except UsageError as error:
        raise UsageError(
            f"{path} is of another run, or of another version of fxprune ({error}); begin anew: empty {path.parent}, or --restart"
        ) from error


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, no two in the same memory, as safetensors requires."""
    found, taken = {}, set()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu")
        place = value.untyped_storage().data_ptr()
        fits = place not in taken and value.is_contiguous()
        found[name] = value if fits else value.clone(memory_format=torch.contiguous_format)
        taken.add(place)
    return found


def _steps(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a folder by their steps; what has another name is none."""
    named = ((_STEP.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return {int(found[1]): path for found, path in named if found}


def _place(draft: Path, folder: Path, step: int) -> None:
    """Rename the draft to the checkpoint of its step, and delete older ones."""
    older = _steps(folder)
    if step in older:
        shutil.rmtree(older.pop(step))
    draft.replace(folder / f"step-{step}")
    for path in older.values():
        shutil.rmtree(path, ignore_errors=True)
