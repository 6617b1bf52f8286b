"""Token ids: which of them stay, and what they are called now. Plain data, saved as JSON beside the model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import SelectionError
from fxprune.files import parse_json, read_text, write_text

_FORMAT = "fxprune.tokens/1"


@dataclass(frozen=True)
class TokenIds:
    """The token ids that a slim model knows: `ids` are the old ids in the order of the new ones, ascending.

    `table` is the embedding's weight and `size` how many rows it had; `inputs` take new ids, and `outputs` count tokens: their position i
    is what stood at `ids[i]`.
    """

    ids: tuple[int, ...]
    table: str
    size: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def translate(self, old: Tensor) -> Tensor:
        """New ids for old ones; ValueError where one was not kept."""
        table = {one: new for new, one in enumerate(self.ids)}
        missing = sorted({int(i) for i in old.flatten()} - table.keys())
        if missing:
            raise ValueError(f"token {missing[0]} was not kept")
        return torch.tensor([table[int(i)] for i in old.flatten()], dtype=old.dtype).reshape(old.shape)

    def restore(self, new: Tensor) -> Tensor:
        """Old ids for new ones, those that a slim model generates; IndexError where there is no such token."""
        return torch.tensor(self.ids, dtype=new.dtype)[new]

    def to_json(self) -> str:
        """The same tokens always give the same text."""
        data = {"format": _FORMAT, "table": self.table, "size": self.size}
        return json.dumps({**data, "inputs": self.inputs, "outputs": self.outputs, "ids": self.ids}) + "\n"

    @staticmethod
    def from_json(text: str) -> TokenIds:
        """Token ids from their JSON text; SelectionError where it holds none."""
        data = parse_json(text, (_FORMAT, "ids", list), "list of token ids", SelectionError)
        ids, table, size = token_list(data["ids"]), str(data.get("table") or ""), data.get("size")
        if not isinstance(size, int) or list(ids) != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < size:
            raise SelectionError(f"token ids must be ascending, distinct and below the size {size}")
        return TokenIds(ids, table, size, tuple(data.get("inputs") or ()), tuple(data.get("outputs") or ()))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the JSON; a file that exists stays unless `overwrite`."""
        write_text(path, self.to_json(), overwrite)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> TokenIds:
        """Read token ids from their JSON file."""
        return TokenIds.from_json(read_text(path, "token ids", SelectionError))


def token_list(found: Any) -> tuple[int, ...]:
    """A list of integers, at least one; SelectionError where it is none."""
    ids = found if isinstance(found, Sequence) and not isinstance(found, str) else [None]
    wrong = [value for value in ids if not isinstance(value, int) or isinstance(value, bool)]
    if wrong or not ids:
        raise SelectionError(
            f"expected a list of token ids (integers, at least one), got {(wrong or [found])[0]!r}"
        )
    return tuple(ids)
