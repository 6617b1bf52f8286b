"""Block grids: a weight cut into rectangles; with `aligned` and `even_blocks`, edges follow the borders of segments and heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.dims.dim import Dim, factors, segments

BlockSizes: TypeAlias = "int | tuple[int, ...]"
"""The block sizes along one dimension: one for all (the last block may be smaller), or one per block."""


@dataclass(frozen=True)
class BlockGrid:
    """The sizes of the blocks along the first two dimensions of a weight."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """The number of blocks along each dimension."""
        return len(self.rows), len(self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """The number of rows and columns of the weight."""
        return sum(self.rows), sum(self.columns)

    def spread(self, table: Tensor) -> Tensor:
        """A table with one value per block, expanded to one value per element of the weight."""
        rows, columns = (table.new_tensor(sizes, dtype=torch.long) for sizes in (self.rows, self.columns))
        found: Tensor = table.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return found

    def totals(self, values: Tensor) -> Tensor:
        """The sum of each block of a matrix."""
        return _added(_added(values, self.rows, 0), self.columns, 1)

    def areas(self) -> Tensor:
        """The number of elements of each block, float64."""
        rows, columns = (torch.tensor(sizes, dtype=torch.float64) for sizes in (self.rows, self.columns))
        found: Tensor = rows[:, None] * columns
        return found


def _added(values: Tensor, sizes: tuple[int, ...], place: int) -> Tensor:
    """The sums of consecutive runs of these sizes along a dimension."""
    if set(sizes) == {1}:
        return values
    if len(set(sizes)) == 1:
        parts: Tensor = values.unflatten(place, (len(sizes), sizes[0])).sum(place + 1)
        return parts
    index = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(values.device)
    shape = list(values.shape)
    shape[place] = len(sizes)
    return values.new_zeros(shape).index_add(place, index, values)


def even_blocks(dim: Dim, count: int) -> tuple[int, ...]:
    """The sizes of about `count` blocks of similar size along a dim, none of which crosses the border of a segment or of a head."""
    parts = segments(dim)
    wanted = max(1, round(count / len(parts)))
    return tuple(size for part in parts for size in aligned(part, _rounded(part, -(-part.size // wanted))))


def _rounded(dim: Dim, block: int) -> int:
    """A block size rounded up to whole heads, where the dim has heads."""
    inner = dim.size // factors(dim)[0].size if dim.size > 1 else 1
    return -(-block // inner) * inner


def cut_into_blocks(size: int, block: BlockSizes) -> tuple[int, ...]:
    """The sizes of the blocks of a length; ValueError where given sizes do not add up to it, or one is below 1."""
    if not isinstance(block, int):
        if sum(block) != size or min(block) < 1:
            raise ValueError(f"blocks of {block} don't make {size}")
        return tuple(block)
    if block < 1:
        raise ValueError(f"a block has at least one row and one column, got {block}")
    return (block,) * (size // block) + ((size % block,) if size % block else ())


def aligned(dim: Dim, block: int) -> tuple[int, ...]:
    """The sizes of blocks of at most `block` positions along a dim, none of which crosses the border of a segment or of a head.

    Blocks consist of whole heads where `block` is a multiple of the head's size; else a block lies within one head.
    """
    parts = segments(dim)
    if len(parts) > 1:
        return tuple(size for part in parts for size in aligned(part, block))
    return _within(factors(dim), block) if dim.size > 1 else (dim.size,)


def _within(parts: Sequence[Dim], block: int) -> tuple[int, ...]:
    first, rest = parts[0], parts[1:]
    if not rest:
        return cut_into_blocks(first.size, block) if len(segments(first)) == 1 else aligned(first, block)
    inner = math.prod(part.size for part in rest)
    if block % inner == 0:
        return tuple(size * inner for size in cut_into_blocks(first.size, block // inner))
    return _within(rest, block) * first.size
