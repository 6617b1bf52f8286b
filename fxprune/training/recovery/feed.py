"""Feed: batches to train on, without end, rows shuffled; from memory, or from an iterable that is larger than memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fxprune.calibration.data import Batch, rows_along
from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.ir.tensors import tensor_bytes

ROOM_FOR_ROWS = 2**30
"""Bytes of rows that lie in memory at a time, and are shuffled among themselves."""

_Row = tuple[Batch, int]


class Feed:
    """Batches of at most `size` rows of equal sizes; where a program's batch is fixed, the batches as they came.

    An iterable is read in parts of about `ROOM_FOR_ROWS` bytes, and again when it ends; the last part of one that can't is repeated.
    The first part is kept, for trials begin with it, too. Process `part[0]` of `part[1]` has every batch of that place.
    """

    def __init__(
        self,
        program: Program,
        source: Iterable[Batch],
        size: int,
        seed: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.program, self.source, self.size, self.seed = program, source, size, seed
        self.part = part
        self._parts, self._several = _parts(source), False
        self._first: list[Batch] = []

    def batches(self, skip: int = 0) -> Iterator[Batch]:
        """Yield batches without end, after the first `skip` of them; UsageError where no row is left."""
        place = 0
        for number, chunk in enumerate(self._chunks()):
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            for rows in self._shuffled(chunk, random):
                mine = place % self.part[1] == self.part[0]
                place += 1
                if mine and place > skip * self.part[1]:
                    yield _joined(self.program, rows)

    def _chunks(self) -> Iterator[list[Batch]]:
        """Yield parts of the source, again and again; the last one where it can be read only once."""
        self._first = self._first or next(self._parts, [])
        if not self._first:
            raise UsageError("there is no batch to train on: give calibration data")
        part = self._first
        while True:
            yield part
            part = self._next() or part

    def _next(self) -> list[Batch]:
        """Return the next part, the first one again after the last; an empty one where there is no other."""
        found = next(self._parts, [])
        if found:
            self._several = True
            return found
        self._parts = _parts(self.source)
        return next(self._parts, []) if self._several else []

    def _shuffled(self, chunk: Sequence[Batch], random: torch.Generator) -> Iterator[list[_Row]]:
        groups: dict[tuple[object, ...], list[_Row]] = defaultdict(list)
        for batch in chunk:
            along = rows_along(self.program, batch)
            count = len(batch[along[0]]) if along else 1
            key = _form(batch, along) if along else (id(batch),)
            groups[key] += [(batch, row) for row in range(count)]
        made = [rows for group in groups.values() for rows in self._cut(group, random)]
        order = torch.randperm(len(made), generator=random).tolist()
        yield from (made[i] for i in order)

    def _cut(self, group: Sequence[_Row], random: torch.Generator) -> list[list[_Row]]:
        order = torch.randperm(len(group), generator=random).tolist()
        return [
            [group[i] for i in order[first : first + self.size]] for first in range(0, len(order), self.size)
        ]


def _parts(source: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Yield the batches in lists of about `ROOM_FOR_ROWS` bytes."""
    part, size = list[Batch](), 0
    for batch in source:
        part.append(batch)
        size += sum(value.nbytes for value in batch.values())
        if size > ROOM_FOR_ROWS:
            yield part
            part, size = [], 0
    if part:
        yield part


def _form(batch: Batch, along: Sequence[str]) -> tuple[object, ...]:
    """Return what batches have in common whose rows can be joined: sizes of the rows, and the inputs that have none."""
    return tuple(
        (name, tuple(value.shape[1:]) if name in along else bytes(tensor_bytes(value)))
        for name, value in batch.items()
    )


def _joined(program: Program, rows: Sequence[_Row]) -> Batch:
    first = rows[0][0]
    along = rows_along(program, first)
    if not along:
        return first
    return {name: _stacked(name, rows) if name in along else value for name, value in first.items()}


def _stacked(name: str, rows: Sequence[_Row]) -> Tensor:
    return torch.stack([batch[name][row] for batch, row in rows])
