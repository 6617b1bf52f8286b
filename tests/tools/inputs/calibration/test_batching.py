"""Batching of rows: full batches of equal sizes, and an order whose every beginning is spread evenly."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune import capture
from fxprune.errors import UsageError
from fxprune.tools.inputs.calibration.batching import Batching, batched, batching_of, spread_order


@pytest.mark.parametrize(
    ("count", "order"),
    [(0, []), (1, [0]), (2, [0, 1]), (3, [0, 2, 1]), (8, [0, 4, 2, 6, 1, 5, 3, 7]), (5, [0, 4, 2, 1, 3])],
)
def test_every_beginning_of_the_order_is_spread_evenly(count: int, order: list[int]) -> None:
    assert spread_order(count) == order


def test_a_tenth_of_a_sorted_list_has_a_part_of_each_of_ten_classes() -> None:
    picked = spread_order(1000)[:100]
    counts = [sum(place // 100 == label for place in picked) for label in range(10)]
    assert sorted(spread_order(1000)) == list(range(1000))
    assert min(counts) >= 8
    assert max(counts) <= 13


def rows(*sizes: int) -> Iterator[dict[str, Tensor]]:
    yield from ({"x": torch.full((size,), place)} for place, size in enumerate(sizes))


def firsts(*sizes: int, step: int = 2, fixed: bool = False, first: int = 0) -> list[list[int]]:
    batching = Batching(step, fixed, ("x",))
    return [each["x"][:, 0].tolist() for each in batched(rows(*sizes), batching, first, "photos")]


def test_rows_of_equal_sizes_share_a_batch() -> None:
    assert firsts(3, 4, 3, 3, 4) == [[0, 2], [1, 4], [3]]
    assert firsts(3, 4, 3, 3, 4, fixed=True) == [[0, 2], [1, 4]]


def test_a_batch_ends_after_the_first_rows() -> None:
    assert firsts(3, 3, 3, 3, 3, 3, step=4, first=3) == [[0, 1, 2], [3, 4, 5]]
    read = []
    made = batched((read.append(row) or row for row in rows(3, 3, 3, 3)), Batching(9, False, ("x",)), 2, "")  # type: ignore[func-returns-value]
    assert len(next(made)["x"]) == len(read) == 2


def test_too_few_rows_for_a_fixed_batch_are_refused() -> None:
    sentence = "the model takes exactly 3 rows of equal sizes at once, and photos has 2 in all; give more"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        firsts(3, 3, step=3, fixed=True)


def test_the_limit_of_a_fixed_batch_is_whole_batches() -> None:
    fixed = batching_of(capture(nn.Linear(4, 2), (torch.rand(3, 4),)))
    free = batching_of(capture(nn.Linear(4, 2), (torch.rand(3, 4),), {}, {"input": {0: Dim.AUTO}}))
    assert [fixed.limit(rows) for rows in (0, 1, 3, 8)] == [0, 3, 3, 6]
    assert [free.limit(rows) for rows in (0, 1, 3, 8)] == [0, 1, 3, 8]
    assert (fixed.step, fixed.fixed, free.step, free.fixed) == (3, True, 32, False)
