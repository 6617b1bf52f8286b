"""Teacher cache: the teacher's outputs, one entry per row, without padding; every epoch reads the same rows again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class TeacherCache:
    """Cache of named tensors by row, up to `limit` bytes; entries that no longer fit are not stored.

    `trimmed` names tensors that are (length, …) in each row: they are stored without padding, and padded with zeros when they are read.
    """

    def __init__(self, limit: int = 2**31) -> None:
        self.limit, self.bytes = limit, 0
        self._rows: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def get(
        self, index: Tensor, names: Collection[str], width: int, trimmed: Collection[str]
    ) -> dict[str, Tensor] | None:
        """Return the tensors of these names for all of these rows, (rows, …), or None where one is not in the cache.

        `width` is the length of the batch, to which `trimmed` tensors are padded.
        """
        rows = [self._rows.get(i, {}) for i in index.tolist()]
        if any(name not in row for row in rows for name in names):
            return None
        columns = {name: [row[name] for row in rows] for name in names}
        whole = {n: _padded(c, width) if n in trimmed else torch.stack(c) for n, c in columns.items()}
        return {name: value.to(index.device) for name, value in whole.items()}

    def put(
        self, index: Tensor, lengths: Tensor | None, values: Mapping[str, Tensor], trimmed: Collection[str]
    ) -> None:
        """Store the values of these rows, while there is room; `lengths` (rows) are those that `trimmed` tensors are cut to."""
        for place, row in enumerate(index.tolist()):
            cut = slice(None) if lengths is None else slice(int(lengths[place]))
            had = self._rows.get(row, {})
            new = {name: value[place] for name, value in values.items() if name not in had}
            told = {name: value[cut] if name in trimmed else value for name, value in new.items()}
            size = sum(value.numel() * value.element_size() for value in told.values())
            if self.bytes + size <= self.limit:
                kept = {name: value.detach().clone() for name, value in told.items()}
                self._rows.setdefault(row, {}).update(kept)
                self.bytes += size


def _padded(column: Sequence[Tensor], width: int) -> Tensor:
    found = pad_sequence(list(column), batch_first=True)
    missing = width - found.shape[1]
    return torch.cat([found, found.new_zeros(len(found), missing, *found.shape[2:])], 1) if missing else found
