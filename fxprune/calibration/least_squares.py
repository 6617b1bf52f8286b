"""Ridge least squares for one matrix: the weights that bring its output closest to a target, chosen by the error on held-back rows.

The ridge pulls towards the current weights W [outputs, columns]: W + (D − W·C)(C + λI)⁻¹, with C the second moments of the inputs and D
those of targets and inputs (both about the means where there is a bias); of a batch of matrices, one for each group of channels, all have a
dim of groups in front. Directions that the data do not determine stay as they are. Sums are in float64, those of `narrow` inputs in float32
for some thousand rows before. λ is a share of the mean diagonal of C: the one of RIDGES with the least error on held-back rows, of at most
SAMPLE outputs. The current weights stay where no fit is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxprune.calibration.second_moments import ROWS, ProductSum, in_parts
from fxprune.storage.devices import in_float64

RIDGES = (1.0, 1e-1, 1e-2, 1e-3)
"""Strengths of the ridge to try, as shares of the mean diagonal of C."""

FACTOR_BYTES = 1 << 28
"""Bytes of factors that are kept for the next matrix; larger ones are computed again."""

NEGLIGIBLE = 1e-10
"""Relative squared error below which rounding explains the difference, and no re-fit is tried."""

CONDITION = 1e12
"""Largest estimated condition number of normal equations that are solved."""

SAMPLE = 256
"""Outputs, evenly spread, on which ridges are compared where there are more."""

_OUTPUTS = 4096
"""Outputs whose error is computed at a time."""

_FEWEST = 512
"""Rows that are summed at a time at least, however many groups there are."""


@dataclass
class InputSums:
    """Sums over rows of inputs x [rows, columns], by groups where there are some, and the factors of their normal equations.

    With `kept`, factors are kept for the next matrix that reads the same inputs. `narrow` as in ProductSum.
    """

    kept: bool = False
    narrow: bool = False
    rows: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    x: Tensor = field(default_factory=lambda: torch.zeros(()))
    _factors: dict[tuple[bool, float], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._products = ProductSum(self.narrow)

    @property
    def xx(self) -> Tensor:
        """Sum of the products of the inputs [columns, columns]."""
        return self._products.total

    def take(self, inputs: Tensor) -> None:
        """Add rows of one batch."""
        self.rows, self.x = self.rows + inputs.shape[-2], self.x + _sum_of(inputs)
        self._products.add(inputs)

    def sums(self) -> tuple[Tensor, ...]:
        """Return all sums."""
        return self.rows, self.x, self.xx

    def spread(self, centred: bool) -> Tensor:
        """Return the mean products of columns C; if `centred`, of their deviations from the mean."""
        if not centred:
            return self.xx / self.rows
        mean = self.x / self.rows
        return self.xx / self.rows - mean[..., None] * mean[..., None, :]

    def factor(self, spread: Tensor, centred: bool, share: float) -> tuple[Tensor, Tensor]:
        """Return (the Cholesky factor of C + λI, which groups it is sound for: definite, no worse than CONDITION); λ: a share of diag C."""
        if (centred, share) in self._factors:
            return self._factors[centred, share]
        ridge = share * spread.diagonal(dim1=-2, dim2=-1).mean(-1)
        factor, fault = torch.linalg.cholesky_ex(_damped(spread, ridge))
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        sound = (fault == 0) & (ridge > 0) & ((diagonal.amax(-1) / diagonal.amin(-1)) ** 2 <= CONDITION)
        if not bool(sound.all()):
            eye = torch.eye(spread.shape[-1], dtype=spread.dtype, device=spread.device)
            factor = factor.where(sound[..., None, None], eye)
        found = factor, sound
        if self.kept and len(RIDGES) * factor.nbytes <= FACTOR_BYTES:
            self._factors[centred, share] = found
        return found


@dataclass
class Sums:
    """Sums over rows of inputs x [rows, columns] and targets y [rows, outputs], by groups where there are some: [groups, rows, …].

    `known` are those of the inputs, where another matrix that reads the same has summed them. `yy` are the squares of each output.
    """

    inputs: InputSums = field(default_factory=InputSums)
    known: bool = False
    y: Tensor = field(default_factory=lambda: torch.zeros(()))
    yy: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    products: ProductSum | None = None

    def __post_init__(self) -> None:
        self._products = self.products or ProductSum(self.inputs.narrow)

    @property
    def xy(self) -> Tensor:
        """Sum of the products of inputs and targets [columns, outputs]."""
        return self._products.total

    def take(self, inputs: Tensor, targets: Tensor) -> None:
        """Add the rows of one batch."""
        many = max(ROWS // inputs.shape[:-2].numel(), _FEWEST)
        for x, y in zip(inputs.split(many, -2), targets.split(many, -2), strict=True):
            self._take(x, y)

    def _take(self, inputs: Tensor, targets: Tensor) -> None:
        if not (self.inputs.narrow and in_parts(inputs, targets)):
            inputs, targets = in_float64(inputs), in_float64(targets)
        if not self.known:
            self.inputs.take(inputs)
        self.y, self.yy = self.y + _sum_of(targets), self.yy + in_float64(targets).square().sum(-2)
        self._products.add(inputs, targets)

    def of_outputs(self, places: Tensor) -> Sums:
        """Return the sums of some outputs alone."""
        xy = ProductSum(total=self.xy[..., places])
        return Sums(self.inputs, True, self.y[..., places], self.yy[..., places], xy)

    def sums(self) -> tuple[Tensor, ...]:
        """Return all sums, those of the inputs only where they are this matrix's own."""
        return *(() if self.known else self.inputs.sums()), self.y, self.xy, self.yy

    def error(self, fit: Fit) -> float:
        """Return the relative squared error of a fit: Σ ‖prediction − target‖² / Σ ‖target‖²."""
        bias, squares = fit.bias, float(self.yy.sum())
        total = squares
        for weight, product in zip(fit.weight.split(_OUTPUTS, -2), self.xy.split(_OUTPUTS, -1), strict=True):
            moved = torch.sub(self.inputs.xx @ weight.mT, product, alpha=2)
            total += float((weight.mT * moved).sum())
        if bias is not None:
            cross = (_times(fit.weight, self.inputs.x) - self.y) * 2 + self.inputs.rows * bias
            total += float((bias * cross).sum())
        return max(total, 0.0) / max(squares, 1e-300)


@dataclass(frozen=True, eq=False)
class Fit:
    """A matrix [outputs, columns] and a bias [outputs] (None: it has none), or a batch of both; `how` is the method that gave them."""

    weight: Tensor
    bias: Tensor | None
    how: str = "as it was"

    def of_outputs(self, places: Tensor) -> Fit:
        """Return the fit of some outputs alone."""
        return Fit(self.weight[..., places, :], None if self.bias is None else self.bias[..., places])


def best(sums: Sums, held: Sums, now: Fit, ridge: bool) -> tuple[Fit, float, float]:
    """Return (the fit with the least error on held-back rows, its error there, the error there of the current weights).

    Compared with the current weights: the mean in the bias if any (FLAP, arXiv 2312.11983), and a ridge if `ridge`.
    """
    before = held.error(now)
    if before < NEGLIGIBLE:
        return now, before, before
    least, error = now, before
    for fit in _fits_to_compare(sums, held, now, ridge):
        own = held.error(fit)
        if own < error:
            least, error = fit, own
    return least, error, before


def _fits_to_compare(sums: Sums, held: Sums, now: Fit, ridge: bool) -> Iterator[Fit]:
    """Yield fits one at a time: of a language model's last matrix, each takes half a gigabyte."""
    if now.bias is not None:
        yield _centred(sums, now.weight, "mean")
    found = _best_ridge(sums, held, now) if ridge else None
    if found is not None:
        yield found


def _best_ridge(sums: Sums, held: Sums, now: Fit) -> Fit | None:
    """Return the fit with the ridge of the least error on held-back rows; None where no normal equations are sound.

    Of many outputs, ridges are compared on a sample: for all of them, each costs as much as the products of a thousand rows.
    """
    outputs, spread = now.weight.shape[-2], sums.inputs.spread(now.bias is not None)
    some, judge, start = sums, held, now
    if outputs > SAMPLE:
        places = torch.linspace(0, outputs - 1, SAMPLE, device=now.weight.device).round().long()
        some, judge, start = sums.of_outputs(places), held.of_outputs(places), now.of_outputs(places)
    least, best_fit, best_factor = math.inf, None, None
    rest = _rest(some, start, spread)
    for share in RIDGES:
        factor = sums.inputs.factor(spread, now.bias is not None, share)
        fit = _solved(some, start, rest, factor, share) if bool(factor[1].any()) else None
        error = judge.error(fit) if fit else math.inf
        if error < least:
            least, best_fit, best_factor = error, fit, (factor, share)
    if best_factor is None or some is sums:
        return best_fit
    return _solved(sums, now, _rest(sums, now, spread), *best_factor)


def _rest(sums: Sums, now: Fit, spread: Tensor) -> Tensor:
    """Return D − W·C [columns, outputs]: what the weights as they are leave unexplained."""
    inputs, toward = sums.inputs, sums.xy / sums.inputs.rows
    if now.bias is not None:
        toward = toward - (inputs.x / inputs.rows)[..., None] * (sums.y / inputs.rows)[..., None, :]
    return toward - spread @ now.weight.mT


def _solved(sums: Sums, now: Fit, rest: Tensor, factor: tuple[Tensor, Tensor], share: float) -> Fit:
    """Return the fit of a ridge, by the factor of its normal equations; groups for which it is not sound stay as they are."""
    change = torch.cholesky_solve(rest, factor[0]).mul_(factor[1][..., None, None])
    weight, how = change.mT.add_(now.weight), f"ridge {share:g}"
    return Fit(weight, None, how) if now.bias is None else _centred(sums, weight, how)


def _sum_of(rows: Tensor) -> Tensor:
    """Return the sum of rows in float64."""
    return in_float64(rows).sum(-2)


def _damped(spread: Tensor, ridge: Tensor) -> Tensor:
    """Return C + λI; of a large matrix, an identity and its multiple would take as much memory again."""
    damped = spread.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(ridge[..., None])
    return damped


def _centred(sums: Sums, weight: Tensor, how: str) -> Fit:
    """Return the fit of a weight with the bias that leaves no mean error."""
    return Fit(weight, (sums.y - _times(weight, sums.inputs.x)) / sums.inputs.rows, how)


def _times(weight: Tensor, vector: Tensor) -> Tensor:
    return (weight @ vector[..., None])[..., 0]
