"""Second moments: sums of products of the inputs of matrices, and of the gradients at their outputs.

Sums are in float64; where rounding of 1e-6 is tolerated, products of some thousand rows are summed in float32 before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fxprune.analysis import Matrix
from fxprune.calibration.run import BatchRecord, Observer
from fxprune.storage.devices import in_float64

ROWS = 1 << 14
"""Number of rows that are converted to float64 at a time: an image has tens of thousands."""

NARROW = 1 << 16
"""Numbers of a product from which on it may be computed in float32, some rows at a time, before it is added in float64."""

PART = 1 << 12
"""Rows whose products are summed in float32 at most."""

_BLOCKS = 4
"""Blocks of columns in which products of a value with itself are computed: they are symmetric, so that 10 of 16 blocks suffice."""

_APART = 2.0**20
"""How many times as large or small as those before them rows may be that are summed with them."""


class ProductSum:
    """Sum over rows of leftᵀ·right [columns, outputs] in float64; of batches of matrices, with their dim in front.

    With `narrow`, large products are summed in float32 for some thousand rows before they are added, which takes half of the time. Their
    rounding is some 1e-7 of the spread of the two columns: the mean of the first rows is subtracted before, and operands are scaled by
    powers of two, so that neither means nor tiny gradients nor massive activations cost precision.
    """

    def __init__(self, narrow: bool = False, total: Tensor | None = None) -> None:
        self.narrow = narrow
        self._total = torch.zeros(()) if total is None else total
        self._part: _Part | None = None

    @property
    def total(self) -> Tensor:
        """The sum so far; a scalar zero before any rows."""
        self._end_part()
        return self._total

    def _end_part(self) -> None:
        if self._part is None:
            return
        if self._total.dim() < 2:
            self._total = self._part.empty_sum()
        self._part.add_to(self._total)
        self._part = None

    def add(self, left: Tensor, right: Tensor | None = None) -> None:
        """Add rows [rows, columns] and [rows, outputs]; None: those of `left` themselves."""
        if not self.narrow or not in_parts(left, left if right is None else right):
            wide = in_float64(left)
            self._total = add_product(self.total, wide, wide if right is None else in_float64(right))
            return
        place = 0
        while place < len(left):
            if self._part is None or not self._part.takes(left, right):
                self._end_part()
                self._part = _Part(left[place:], None if right is None else right[place:])
            stop = place + PART - self._part.rows
            self._part.add(left[place:stop], None if right is None else right[place:stop])
            place = stop


class _Part:
    """Products of some rows in float32, of operands that are shifted and scaled."""

    def __init__(self, left: Tensor, right: Tensor | None) -> None:
        self.symmetric, self.rows = right is None, 0
        self.operands = [_Operand(left), _Operand(left if right is None else right)][
            : 1 + (right is not None)
        ]
        shape = len(self.operands[0].shift), len(self.operands[-1].shift)
        self.products = left.new_zeros(shape, dtype=torch.float32)

    def takes(self, left: Tensor, right: Tensor | None) -> bool:
        """Return whether rows can be added: there is room, and they are of the size of those before."""
        given = (left,) if right is None else (left, right)
        return self.rows < PART and all(map(_Operand.fits, self.operands, given))

    def add(self, left: Tensor, right: Tensor | None) -> None:
        given = (left,) if right is None else (left, right)
        one, *other = (operand.taken(rows) for operand, rows in zip(self.operands, given, strict=True))
        if other:
            self.products.addmm_(one.mT, other[0])
        for here in _blocks(one.shape[1]) if self.symmetric else ():
            self.products[here, here.start :].addmm_(one[:, here].mT, one[:, here.start :])
        self.rows += len(left)

    def empty_sum(self) -> Tensor:
        return in_float64(self.products[:1]).new_zeros(self.products.shape)

    def add_to(self, total: Tensor) -> None:
        """Add Σ(x + a)(y + b)ᵀ, of the sum of the products of x and y that are shifted by a and b."""
        one, other = self.operands[0], self.operands[-1]
        for here in _blocks(len(self.products)):
            start = here.start if self.symmetric else 0
            wide = in_float64(self.products[here, start:]).mul_(one.unit * other.unit)
            total[here, start:] += wide
            if self.symmetric:
                total[here.stop :, here] += wide[:, here.stop - start :].mT
        total.addr_(one.shift, other.total + self.rows * other.shift).addr_(one.total, other.shift)


class _Operand:
    """One side of products: what its rows are shifted by and divided by, and the sum of the shifted rows in float64."""

    def __init__(self, rows: Tensor) -> None:
        self.mean = rows.float().mean(0)
        self.shift = in_float64(self.mean)
        self.total = torch.zeros_like(self.shift)
        self.unit = _unit(rows.float() - self.mean)

    def fits(self, rows: Tensor) -> bool:
        return 1 / _APART <= _unit(rows.float() - self.mean) / self.unit <= _APART

    def taken(self, rows: Tensor) -> Tensor:
        shifted = rows.float() - self.mean
        self.total += in_float64(shifted).sum(0)
        return shifted / self.unit


def in_parts(left: Tensor, right: Tensor) -> bool:
    """Return whether products are computed in float32 if they may: large ones of such values, unless torch rounds these more coarsely."""
    large = left.dim() == 2 and left.shape[1] * right.shape[1] >= NARROW
    narrow = torch.float64 not in (left.dtype, right.dtype) and not left.is_complex()
    return large and narrow and torch.get_float32_matmul_precision() == "highest"


def _blocks(size: int) -> list[slice]:
    step = -(-size // _BLOCKS)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _unit(value: Tensor) -> float:
    """Return the power of two at the largest magnitude; 1 where there is none."""
    largest = float(value.abs().amax()) if value.numel() else 0.0
    return 2.0 ** math.floor(math.log2(largest)) if 0 < largest < math.inf else 1.0


class Moments:
    """Sums over rows: the inputs [columns], their products [columns, columns], the products of output gradients [outputs, outputs].

    `narrow` as in ProductSum.
    """

    def __init__(self, narrow: bool = False, sums: Sequence[Tensor] = ()) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self.rows, self.total, products, slopes = sums or (zero, *(torch.zeros(()) for _ in range(3)))
        self._products, self._slopes = ProductSum(narrow, products), ProductSum(narrow, slopes)

    @property
    def products(self) -> Tensor:
        """Sum of the products of the inputs [columns, columns]."""
        return self._products.total

    @property
    def slopes(self) -> Tensor:
        """Sum of the products of the output gradients [outputs, outputs]; a scalar zero where there are none."""
        return self._slopes.total

    def take(self, inputs: Tensor) -> None:
        """Add the inputs of one batch [rows, columns]."""
        for part in inputs.split(ROWS):
            self.rows = self.rows + len(part)
            self.total = self.total + in_float64(part).sum(0)
            self._products.add(part)

    def take_slopes(self, slopes: Tensor) -> None:
        """Add the gradients of one batch at the outputs [rows, outputs]."""
        for part in slopes.split(ROWS):
            self._slopes.add(part)

    def sums(self) -> tuple[Tensor, ...]:
        """Return all sums."""
        return self.rows, self.total, self.products, self.slopes

    def spread(self, centred: bool) -> Tensor:
        """Return the mean products of columns [columns, columns]; if `centred`, of their deviations from the mean (the covariance)."""
        mean = self.total / self.rows
        return self.products / self.rows - (torch.outer(mean, mean) if centred else 0.0)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return total + leftᵀ @ right, computed in place unless `total` is the initial scalar zero; of matrices or batches of them."""
    if total.dim() < 2:
        return left.mT @ right
    return total.addmm_(left.mT, right) if total.dim() == 2 else total.baddbmm_(left.mT, right)


class MomentObserver(Observer):
    """Observer of the moments of some matrices; with `slopes`, those of the gradients at their outputs as well.

    `narrow` as in ProductSum, for uses that tolerate a relative rounding of 1e-6.
    """

    def __init__(self, matrices: list[Matrix], slopes: bool = True, narrow: bool = False) -> None:
        self.matrices = matrices
        self.values = frozenset(matrix.source.name for matrix in matrices)
        self.nodes = frozenset(matrix.node.name for matrix in matrices) if slopes else frozenset()
        self.moments = {matrix.node.name: Moments(narrow) for matrix in matrices}
        self._open = list(self.moments)  # matrices whose sums are not complete

    def sums(self, left: frozenset[str]) -> Iterator[Tensor]:
        """Yield the sums of the matrices that are not left, each once."""
        for name in [name for name in self._open if name not in left]:
            self._open.remove(name)
            yield from self.moments[name].sums()

    def take(self, seen: BatchRecord) -> None:
        """Add one batch of one segment."""
        for matrix in self.matrices:
            name = matrix.node.name
            if name not in seen.nodes:
                continue
            self.moments[name].take(matrix.rows(seen.values[matrix.source.name]))
            for slopes in seen.slopes:
                if name in slopes:
                    self.moments[name].take_slopes(matrix.results(slopes[name]))


def moment_bytes(matrix: Matrix, narrow: bool = False) -> int:
    """Return the memory that the moments of a matrix take, in bytes."""
    outputs, columns = matrix.sizes
    return int(sum(_sum_bytes(size**2, narrow) for size in (columns, outputs)))


def _sum_bytes(numbers: int, narrow: bool) -> int:
    return (12 if narrow and numbers >= NARROW else 8) * numbers
