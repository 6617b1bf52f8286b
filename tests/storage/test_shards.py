"""Shards: what is written is what a loader reads, in files of bounded size."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fxprune.errors import ExportError
from fxprune.storage import to_disk
from fxprune.storage.shards import INDEX, save_sharded


def test_tensors_come_back_from_their_shards(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.weight": to_disk(torch.full((64, 512), float(i))) for i in range(5)}
    tensors["tied"] = tensors["layers.0.weight"]
    tensors["turned"] = torch.arange(6.0).reshape(2, 3).t()
    files = save_sharded(tensors, tmp_path / "out", shard_bytes=300_000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert [file.name for file in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + [
        INDEX
    ]
    assert index["metadata"] == {"total_size": 5 * 64 * 512 * 4 + 24}
    assert "tied" not in index["weight_map"]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "out" / file)[name], tensors[name])
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_folder_that_exists_is_not_written_into(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="exists; give another name, or remove it"):
        save_sharded({"x": torch.ones(2)}, tmp_path)
