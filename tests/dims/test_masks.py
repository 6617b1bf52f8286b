"""Masks: which positions along a dim stay, and what is cut or zeroed, by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.dims import Kept, atom, changes, coordinates, cut, product, zero
from fxprune.dims.dim import total
from fxprune.dims.masks import KeptRows, across, has_outer, keep_mask, kept_size, new_size


def only(size: int, *kept: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(kept)] = True
    return mask


def positions(mask: Tensor) -> list[int]:
    return [int(place) for place in mask.nonzero().flatten()]


HEADS, SIZE, OTHER = atom(2), atom(3), atom(4)
ROWS = KeptRows(HEADS, torch.stack([only(3, 0, 1), only(3, 1, 2)]))
"""The first head keeps its dimensions 0 and 1, the second 1 and 2."""


def test_positions_of_a_product_and_of_a_sum() -> None:
    kept = {HEADS: only(2, 1), SIZE: only(3, 0, 2)}
    assert positions(keep_mask(product([HEADS, SIZE]), kept)) == [3, 5]
    assert positions(keep_mask(product([SIZE, HEADS]), kept)) == [1, 5]
    assert positions(keep_mask(total([HEADS, OTHER, SIZE]), kept)) == [1, 2, 3, 4, 5, 6, 8]
    assert positions(keep_mask(product([HEADS, OTHER, SIZE]), kept)) == [12, 14, 15, 17, 18, 20, 21, 23]


def test_a_mask_is_a_copy() -> None:
    kept = {SIZE: only(3, 0)}
    keep_mask(SIZE, kept).fill_(True)
    assert positions(kept[SIZE]) == [0]


def test_coordinates() -> None:
    assert coordinates(product([HEADS, SIZE]), HEADS).tolist() == [0, 0, 0, 1, 1, 1]
    assert coordinates(product([HEADS, SIZE]), SIZE).tolist() == [0, 1, 2, 0, 1, 2]
    assert coordinates(total([HEADS, product([OTHER, HEADS])]), HEADS).tolist() == [0, 1, *[0, 1] * 4]
    assert coordinates(total([HEADS, SIZE]), SIZE).tolist() == [-1, -1, 0, 1, 2]
    assert coordinates(HEADS, SIZE).tolist() == [-1, -1]


def test_rows_of_their_own() -> None:
    """Beside its outer atom, alone, and in a sum with what has neither."""
    kept = {SIZE: ROWS}
    assert positions(keep_mask(product([HEADS, SIZE]), kept)) == [0, 1, 4, 5]
    assert positions(keep_mask(product([SIZE, HEADS]), kept)) == [0, 2, 3, 5]
    assert positions(keep_mask(total([product([HEADS, SIZE]), OTHER]), kept)) == [0, 1, 4, 5, 6, 7, 8, 9]
    assert new_size(SIZE, kept) == kept_size(ROWS) == 2
    assert new_size(product([OTHER, SIZE]), kept) == 8
    assert (has_outer(product([HEADS, SIZE]), SIZE, ROWS), has_outer(SIZE, SIZE, ROWS)) == (True, False)


def test_sizes() -> None:
    kept = {HEADS: only(2, 1), SIZE: only(3, 0, 2)}
    assert new_size(product([HEADS, SIZE]), kept) == 2
    assert new_size(OTHER, kept) == 4
    assert (changes(total([OTHER, SIZE]), kept), changes(OTHER, kept)) == (True, False)
    assert kept_size(kept[SIZE]) == 2


def test_what_is_cut_is_what_stays() -> None:
    value = torch.arange(24.0).reshape(4, 6)
    dims = (OTHER, product([HEADS, SIZE]))
    kept = {OTHER: only(4, 1, 3), HEADS: only(2, 1), SIZE: only(3, 0, 2)}
    assert cut(value, dims, kept).tolist() == [[9, 11], [21, 23]]
    assert zero(value, dims, kept).nonzero().tolist() == [[1, 3], [1, 5], [3, 3], [3, 5]]
    assert float(zero(value, dims, kept).sum()) == 9 + 11 + 21 + 23
    assert value.tolist() == torch.arange(24.0).reshape(4, 6).tolist()


def test_what_changes_nothing_shares_memory() -> None:
    value = torch.arange(4.0)
    assert cut(value, (OTHER,), {HEADS: only(2, 1)}).data_ptr() == value.data_ptr()


def test_rows_along_another_dimension() -> None:
    """The outer atom lies in another dimension: each of its units picks its own indices."""
    kept = {SIZE: ROWS}
    value = torch.arange(24.0).reshape(2, 4, 3)
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)):
        turned, dims = value.permute(order), tuple((HEADS, OTHER, SIZE)[place] for place in order)
        assert across(dims, kept) == [(dims.index(SIZE), dims.index(HEADS), ROWS)]
        back = [order.index(place) for place in range(3)]
        first, second = cut(turned, dims, kept).permute(back).tolist()
        assert first == value[0][:, [0, 1]].tolist()
        assert second == value[1][:, [1, 2]].tolist()
        gone = (value - zero(turned, dims, kept).permute(back)).tolist()
        assert gone[0] == (value[0] * torch.tensor([0, 0, 1])).tolist()
        assert gone[1] == (value[1] * torch.tensor([1, 0, 0])).tolist()


def test_rows_along_another_dimension_beside_what_is_cut_alike() -> None:
    kept: Kept = {OTHER: only(4, 0, 3), SIZE: ROWS}
    value = torch.arange(24.0).reshape(2, 4, 3)
    wanted = [value[0][[0, 3]][:, [0, 1]].tolist(), value[1][[0, 3]][:, [1, 2]].tolist()]
    assert cut(value, (HEADS, OTHER, SIZE), kept).tolist() == wanted
    assert float(zero(value, (HEADS, OTHER, SIZE), kept).sum()) == sum(sum(map(sum, part)) for part in wanted)


def test_rows_along_another_dimension_within_a_product() -> None:
    """Columns are (3 x 2), of which the second of each two stays: the first head keeps 1 and 3, the second 3 and 5."""
    pair = atom(2)
    kept: Kept = {pair: only(2, 1), SIZE: ROWS}
    value, dims = torch.arange(12.0).reshape(2, 6), (HEADS, product([SIZE, pair]))
    assert cut(value, dims, kept).tolist() == [[1, 3], [9, 11]]
    assert zero(value, dims, kept).nonzero().tolist() == [[0, 1], [0, 3], [1, 3], [1, 5]]


def test_an_outer_atom_within_a_product_of_another_dimension() -> None:
    """Rows are (heads x 2): both rows of a head pick the head's own indices."""
    pair = atom(2)
    value = torch.arange(12.0).reshape(4, 3)
    wanted = [[0, 1], [3, 4], [7, 8], [10, 11]]
    assert cut(value, (product([HEADS, pair]), SIZE), {SIZE: ROWS}).tolist() == wanted
