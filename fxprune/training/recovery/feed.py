"""Feed: batches to train on, without end, rows shuffled; from memory, or from an iterable that is larger than memory."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

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
    `held` are digests of rows (see `digests`) that are left out. Process `part[0]` of `part[1]` has every batch of that place.
    """

    def __init__(
        self,
        program: Program,
        source: Iterable[Batch],
        size: int,
        seed: int,
        held: Collection[str] = (),
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.program, self.source, self.size, self.seed = program, source, size, seed
        self.held, self.part = frozenset(held), part

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
        last, parts = list[Batch](), 2
        while parts > 1:
            parts = 0
            for place, part in enumerate(_parts(self.source), 1):
                parts, last = place, part
                yield part
        while last:
            yield last
        raise UsageError("there is no batch to train on: give calibration data")

    def _shuffled(self, chunk: Sequence[Batch], random: torch.Generator) -> Iterator[list[_Row]]:
        groups: dict[tuple[object, ...], list[_Row]] = defaultdict(list)
        for batch in chunk:
            along = rows_along(self.program, batch)
            count = len(batch[along[0]]) if along else 1
            key = _form(batch, along) if along else (id(batch),)
            groups[key] += [(batch, row) for row in range(count) if not self._is_held(batch, along, row)]
        made = [rows for group in groups.values() for rows in self._cut(group, random)]
        if not made:
            raise UsageError(
                "no rows are left to train on: all of them are held back to judge by; give more calibration data"
            )
        order = torch.randperm(len(made), generator=random).tolist()
        yield from (made[i] for i in order)

    def _cut(self, group: Sequence[_Row], random: torch.Generator) -> list[list[_Row]]:
        order = torch.randperm(len(group), generator=random).tolist()
        return [
            [group[i] for i in order[first : first + self.size]] for first in range(0, len(order), self.size)
        ]

    def _is_held(self, batch: Batch, along: Sequence[str], row: int) -> bool:
        return bool(self.held) and _digest(batch, along, row) in self.held


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


def digests(program: Program, batches: Iterable[Batch]) -> set[str]:
    """Return a digest of every row, by which it is known again among others."""
    found = set[str]()
    for batch in batches:
        along = rows_along(program, batch)
        count = len(batch[along[0]]) if along else 1
        found |= {_digest(batch, along, row) for row in range(count)}
    return found


def _digest(batch: Batch, along: Sequence[str], row: int) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(along or batch):
        found.update(tensor_bytes(batch[name][row] if along else batch[name]))
    return found.hexdigest()


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
