"""Shards: tensors written to a folder as safetensors files of bounded size with an index, as Hugging Face's loaders read them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fxprune.errors import ExportError
from fxprune.storage.mapped import has_memory, let_go

SHARD_BYTES = 1 << 29
"""Bytes of a shard, at most, but for a single tensor that is larger."""

INDEX = "model.safetensors.index.json"
"""Name of the file with the shard of each tensor."""


def save_sharded(tensors: Mapping[str, Tensor], folder: Path, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write tensors by name to shards in a folder, which must not exist, and return the files; no more than a shard is in memory.

    Tensors that share all of their memory are written once, under the first of their names, as safetensors requires. ExportError where
    the folder exists.
    """
    if folder.exists():
        raise ExportError(f"{folder} exists; give another name, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fxprune-", dir=folder.parent) as place:
        draft = Path(place) / folder.name
        draft.mkdir()
        shards = list(_packed(_once(tensors), shard_bytes))
        where: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(
                {name: tensors[name].detach().contiguous() for name in names},
                draft / file,
                metadata={"format": "pt"},
            )
            for name in names:
                let_go(tensors[name])
            where |= dict.fromkeys(names, file)
        size = sum(tensors[name].nbytes for name in where)
        told = {"metadata": {"total_size": size}, "weight_map": where}
        (draft / INDEX).write_text(json.dumps(told, indent=1), encoding="utf-8")
        draft.rename(folder)
    return sorted(folder.iterdir())


def _once(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the bytes of tensors by name, those that are the same memory under the first of their names."""
    seen, found = set[Any](), dict[str, int]()
    for name, value in tensors.items():
        key: Any = name
        if has_memory(value):
            key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if key not in seen:
            seen.add(key)
            found[name] = value.nbytes
    return found


def _packed(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Yield names in their order, in lists of at most `limit` bytes each."""
    names, room = list[str](), limit
    for name, size in sizes.items():
        if names and size > room:
            yield names
            names, room = [], limit
        names.append(name)
        room -= size
    if names:
        yield names
