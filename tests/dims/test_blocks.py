"""Block grids: their sizes, sums and borders, by hand."""

from __future__ import annotations

import pytest
import torch

from fxprune.dims import atom, product
from fxprune.dims.blocks import BlockGrid, aligned, cut_into_blocks, even_blocks
from fxprune.dims.dim import total

MATRIX = torch.arange(1.0, 16.0).reshape(3, 5)


@pytest.mark.parametrize(
    ("grid", "totals"),
    [
        (BlockGrid((2, 1), (2, 3)), [[1 + 2 + 6 + 7, 3 + 4 + 5 + 8 + 9 + 10], [11 + 12, 13 + 14 + 15]]),
        (BlockGrid((1, 1, 1), (1,) * 5), MATRIX.tolist()),
        (BlockGrid((3,), (5,)), [[120]]),
        (BlockGrid((1, 2), (4, 1)), [[10, 5], [80, 25]]),
    ],
)
def test_sums_and_areas_of_blocks(grid: BlockGrid, totals: list[list[float]]) -> None:
    assert grid.totals(MATRIX).tolist() == totals
    assert grid.areas().tolist() == [[row * column for column in grid.columns] for row in grid.rows]
    assert grid.areas().dtype == torch.float64
    assert (grid.shape, grid.size) == ((len(totals), len(totals[0])), (3, 5))


def test_blocks_of_one_size() -> None:
    assert BlockGrid((2, 2), (1, 1)).totals(torch.arange(8.0).reshape(4, 2)).tolist() == [[2, 4], [10, 12]]


def test_a_table_spread_over_the_weight() -> None:
    spread = BlockGrid((2, 1), (2, 3)).spread(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert spread.tolist() == [[1, 1, 2, 2, 2], [1, 1, 2, 2, 2], [3, 3, 4, 4, 4]]


@pytest.mark.parametrize(
    ("size", "block", "sizes"),
    [(8, 4, (4, 4)), (9, 4, (4, 4, 1)), (3, 4, (3,)), (4, 1, (1, 1, 1, 1)), (5, (2, 3), (2, 3))],
)
def test_a_length_in_blocks(size: int, block: int | tuple[int, ...], sizes: tuple[int, ...]) -> None:
    assert cut_into_blocks(size, block) == sizes


@pytest.mark.parametrize("block", [0, -1, (2, 2), (5, 0), (6, -1)])
def test_blocks_that_make_no_length(block: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="block"):
        cut_into_blocks(5, block)


def test_no_block_crosses_a_border() -> None:
    heads = product([atom(3), atom(4)])
    assert aligned(heads, 4) == (4, 4, 4)
    assert aligned(heads, 8) == (8, 4)
    assert aligned(heads, 3) == (3, 1) * 3
    assert aligned(heads, 6) == (4,) * 3
    assert aligned(total([atom(5), heads]), 4) == (4, 1, 4, 4, 4)
    assert aligned(product([atom(2), atom(3), atom(4)]), 12) == (12, 12)
    assert aligned(product([atom(2), atom(3), atom(4)]), 8) == (8, 4, 8, 4)
    assert aligned(product([atom(2), total([atom(3), atom(2)])]), 2) == (2, 1, 2) * 2
    assert aligned(atom(1), 4) == (1,)


def test_about_as_many_blocks_of_similar_size() -> None:
    heads = product([atom(4), atom(3)])
    assert even_blocks(atom(12), 3) == (4, 4, 4)
    assert even_blocks(atom(10), 3) == (4, 4, 2)
    assert even_blocks(heads, 4) == (3, 3, 3, 3)
    assert even_blocks(heads, 3) == (6, 6)
    assert even_blocks(total([atom(8), atom(4)]), 4) == (4, 4, 2, 2)
    assert even_blocks(total([atom(8), atom(4)]), 1) == (8, 4)
    assert even_blocks(atom(1), 3) == (1,)
