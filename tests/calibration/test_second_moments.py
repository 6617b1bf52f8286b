"""Sums of products: those that are computed in float32 some rows at a time are those of float64, up to its rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxprune.calibration.second_moments import NARROW, PART, Moments, ProductSum

SIZES = (1000, 17, 1, 3 * PART, 5)
"""Rows of batches: within a part, and beyond several."""


def batches(columns: int, size: float = 1.0) -> list[Tensor]:
    """Rows whose columns are of very different sizes, as those of a stream with massive activations are."""
    random = torch.Generator().manual_seed(columns)
    scales = torch.logspace(-2, 3, columns) * size
    return [torch.randn(rows, columns, generator=random) * scales + scales for rows in SIZES]


def spreads(rows: Tensor) -> Tensor:
    """The lengths of columns about their means."""
    found: Tensor = (rows.double() - rows.double().mean(0)).norm(dim=0)
    return found


def relative(found: Tensor, left: Tensor, right: Tensor) -> float:
    """The largest error, relative to the lengths of the two columns."""
    one, other = left.double(), right.double()
    lengths = torch.outer(one.norm(dim=0), other.norm(dim=0))
    return float(((found - one.T @ other) / lengths).abs().max())


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e18])
def test_wide_products_are_those_of_float64(size: float) -> None:
    lefts, rights = batches(301, size), batches(257)
    square, cross = ProductSum(narrow=True), ProductSum(narrow=True)
    for left, right in zip(lefts, rights, strict=True):
        square.add(left)
        cross.add(left, right)
    left, right = torch.cat(lefts), torch.cat(rights)
    assert 0 < relative(square.total, left, left) < 1e-6
    assert 0 < relative(cross.total, left, right) < 1e-6
    assert torch.allclose(square.total, square.total.T, rtol=1e-5)


def test_the_sum_can_be_read_between_batches() -> None:
    once, often = ProductSum(narrow=True), ProductSum(narrow=True)
    for batch in batches(300):
        once.add(batch)
        often.add(batch)
        assert often.total.dtype == torch.float64
    assert torch.allclose(once.total, often.total, rtol=1e-5)


def test_means_many_times_the_spread_cost_no_precision() -> None:
    """Nearly constant inputs: a covariance of rounding alone would not be definite."""
    rows = torch.randn(6000, 300, generator=torch.Generator().manual_seed(1)) + 1000
    found = Moments(narrow=True)
    for batch in rows.split(700):
        found.take(batch)
    wanted = torch.cov(rows.double().T, correction=0)
    lengths = spreads(rows) / len(rows) ** 0.5
    assert float(((found.spread(centred=True) - wanted) / torch.outer(lengths, lengths)).abs().max()) < 1e-5


def test_rows_of_another_size_begin_a_part_of_their_own() -> None:
    """Gradients of a masked batch are zero, and the next ones tiny, and then large."""
    rows = [torch.zeros(10, 300), *(size * batches(300)[0] for size in (1e-25, 1.0, 1e15))]
    for one, two in ((0, 1), (1, 2), (2, 3), (3, 1)):
        found = ProductSum(narrow=True)
        found.add(rows[one])
        found.add(rows[two])
        both = torch.cat([rows[one], rows[two]])
        assert relative(found.total, both, both) < 1e-5


@pytest.mark.parametrize("columns", [5, int(NARROW**0.5) + 1])
def test_small_products_and_sums_that_are_not_narrow_are_exact(columns: int) -> None:
    found = ProductSum(narrow=columns**2 < NARROW)
    for batch in batches(columns):
        found.add(batch)
    rows = torch.cat(batches(columns)).double()
    assert relative(found.total, rows, rows) < 1e-14


def test_moments_of_no_rows_are_zero_and_those_of_float64_stay_exact() -> None:
    moments = Moments(narrow=True)
    assert [float(value) for value in moments.sums()] == [0.0] * 4
    rows = torch.cat(batches(300)).double()
    moments.take(rows)
    assert relative(moments.products, rows, rows) < 1e-14
    assert float(moments.rows) == len(rows)
