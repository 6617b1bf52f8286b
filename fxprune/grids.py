"""Grids: a weight in rectangles. Edges lie where segments and heads begin, whatever the size of a block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.dims import Dim, factors, segments

Sizes: TypeAlias = "int | tuple[int, ...]"
"""How large blocks are along one dimension: all alike (the last may be smaller), or each."""


@dataclass(frozen=True)
class Grid:
    """The sizes of the blocks along the two first dimensions of a weight."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """How many blocks there are."""
        return len(self.rows), len(self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """How many rows and columns they have together."""
        return sum(self.rows), sum(self.columns)

    def spread(self, table: Tensor) -> Tensor:
        """A value for each block, at each place of the weight."""
        rows, columns = (table.new_tensor(sizes, dtype=torch.long) for sizes in (self.rows, self.columns))
        return table.repeat_interleave(rows, 0).repeat_interleave(columns, 1)

    def areas(self) -> Tensor:
        """How many places each block has, float64."""
        rows, columns = (torch.tensor(sizes, dtype=torch.float64) for sizes in (self.rows, self.columns))
        return rows[:, None] * columns


def cut(size: int, block: Sizes) -> tuple[int, ...]:
    """A length in blocks; ValueError where given sizes don't add up to it."""
    if not isinstance(block, int):
        if sum(block) != size or min(block) < 1:
            raise ValueError(f"blocks of {block} don't make {size}")
        return tuple(block)
    if block < 1:
        raise ValueError(f"a block has at least one row and one column, got {block}")
    return (block,) * (size // block) + ((size % block,) if size % block else ())


def aligned(dim: Dim, block: int) -> tuple[int, ...]:
    """The sizes of blocks of at most `block` places along a dim, none of which crosses the border of a segment or of a head.

    Blocks that are larger than a head hold whole heads, where the size allows it.
    """
    parts = segments(dim)
    if len(parts) > 1:
        return tuple(size for part in parts for size in aligned(part, block))
    return _within(factors(dim), block)


def _within(parts: Sequence[Dim], block: int) -> tuple[int, ...]:
    first, rest = parts[0], parts[1:]
    if not rest:
        return cut(first.size, block) if len(segments(first)) == 1 else aligned(first, block)
    inner = math.prod(part.size for part in rest)
    if block % inner == 0:
        return tuple(size * inner for size in cut(first.size, block // inner))
    return _within(rest, block) * first.size
