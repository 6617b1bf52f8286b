"""Pickles that do something when they are loaded, and the names that checkpoints of earlier versions had for theirs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

OLD_FILES = ("custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "optimizer.bin", "scheduler.bin", "random_states_0.pkl",
             "model.safetensors", "pytorch_model.bin", "sampler.bin", "dl_state_dict.bin")  # fmt: skip


class Bomb:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)

    @staticmethod
    def check(marker: Path) -> None:
        """Assert that loading writes the file."""
        pickle.loads(pickle.dumps(Bomb(marker)))
        assert marker.exists()
