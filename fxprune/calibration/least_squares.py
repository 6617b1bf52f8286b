"""Ridge least squares for one matrix: the weights that bring its output closest to a target, chosen by the error on held-back rows.

The ridge pulls towards the current weights W [outputs, columns]: W + (D − W·C)(C + λI)⁻¹, with C the second moments of the inputs and D
those of targets and inputs (both about the means where there is a bias); of a batch of matrices, one for each group of channels, all have a
dim of groups in front. Directions that the data do not determine stay as they are. Sums
are in float64. λ is a share of the mean diagonal of C: the one of RIDGES with the least error on held-back rows. The current weights stay
where no fit is better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxprune.calibration.second_moments import ROWS, add_product
from fxprune.storage.devices import in_float64

RIDGES = (1.0, 1e-1, 1e-2, 1e-3)
"""Strengths of the ridge to try, as shares of the mean diagonal of C."""

FACTOR_BYTES = 1 << 28
"""Bytes of factors that are kept for the next matrix; larger ones are computed again."""

NEGLIGIBLE = 1e-10
"""Relative squared error below which rounding explains the difference, and no re-fit is tried."""

CONDITION = 1e12
"""Largest estimated condition number of normal equations that are solved."""

_OUTPUTS = 4096
"""Outputs whose error is computed at a time."""

_FEWEST = 512
"""Rows that are summed at a time at least, however many groups there are."""


@dataclass
class InputSums:
    """Sums over rows of inputs x [rows, columns], by groups where there are some, and the factors of their normal equations.

    With `kept`, factors are kept for the next matrix that reads the same inputs.
    """

    kept: bool = False
    rows: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    x: Tensor = field(default_factory=lambda: torch.zeros(()))
    xx: Tensor = field(default_factory=lambda: torch.zeros(()))
    _factors: dict[tuple[bool, float], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def take(self, wide: Tensor) -> None:
        """Add rows of one batch, in float64."""
        self.rows = self.rows + wide.shape[-2]
        self.x, self.xx = self.x + wide.sum(-2), add_product(self.xx, wide, wide)

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
        eye = torch.eye(spread.shape[-1], dtype=spread.dtype, device=spread.device)
        factor, fault = torch.linalg.cholesky_ex(spread + ridge[..., None, None] * eye)
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        sound = (fault == 0) & (ridge > 0) & ((diagonal.amax(-1) / diagonal.amin(-1)) ** 2 <= CONDITION)
        found = factor.where(sound[..., None, None], eye), sound
        if self.kept and len(RIDGES) * factor.nbytes <= FACTOR_BYTES:
            self._factors[centred, share] = found
        return found


@dataclass
class Sums:
    """Sums over rows of inputs x [rows, columns] and targets y [rows, outputs], by groups where there are some: [groups, rows, …].

    `known` are those of the inputs, where another matrix that reads the same has summed them.
    """

    inputs: InputSums = field(default_factory=InputSums)
    known: bool = False
    y: Tensor = field(default_factory=lambda: torch.zeros(()))
    xy: Tensor = field(default_factory=lambda: torch.zeros(()))
    yy: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def take(self, inputs: Tensor, targets: Tensor) -> None:
        """Add the rows of one batch."""
        many = max(ROWS // inputs.shape[:-2].numel(), _FEWEST)
        for x, y in zip(inputs.split(many, -2), targets.split(many, -2), strict=True):
            self._take(in_float64(x), in_float64(y))

    def _take(self, wide: Tensor, wanted: Tensor) -> None:
        if not self.known:
            self.inputs.take(wide)
        self.y, self.xy = self.y + wanted.sum(-2), add_product(self.xy, wide, wanted)
        self.yy = self.yy + wanted.square().sum()

    def sums(self) -> tuple[Tensor, ...]:
        """Return all sums, those of the inputs only where they are this matrix's own."""
        return *(() if self.known else self.inputs.sums()), self.y, self.xy, self.yy

    def error(self, fit: Fit) -> float:
        """Return the relative squared error of a fit: Σ ‖prediction − target‖² / Σ ‖target‖²."""
        bias, total = fit.bias, float(self.yy)
        for weight, product in zip(fit.weight.split(_OUTPUTS, -2), self.xy.split(_OUTPUTS, -1), strict=True):
            moved = torch.sub(self.inputs.xx @ weight.mT, product, alpha=2)
            total += float((weight.mT * moved).sum())
        if bias is not None:
            cross = (_times(fit.weight, self.inputs.x) - self.y) * 2 + self.inputs.rows * bias
            total += float((bias * cross).sum())
        return max(total, 0.0) / max(float(self.yy), 1e-300)


@dataclass(frozen=True, eq=False)
class Fit:
    """A matrix [outputs, columns] and a bias [outputs] (None: it has none), or a batch of both; `how` is the method that gave them."""

    weight: Tensor
    bias: Tensor | None
    how: str = "as it was"


def fits_to_compare(sums: Sums, now: Fit, ridge: bool) -> Iterator[Fit]:
    """Yield the fits to compare with the current weights: the mean in the bias if any (FLAP, arXiv 2312.11983), and ridges if `ridge`.

    One at a time: of a language model's last matrix, each takes half a gigabyte.
    """
    if now.bias is not None:
        yield _centred(sums, now.weight, "mean")
    if ridge:
        yield from _ridges(sums, now)


def _ridges(sums: Sums, now: Fit) -> Iterator[Fit]:
    inputs, centred = sums.inputs, now.bias is not None
    spread, toward = inputs.spread(centred), sums.xy / inputs.rows
    if centred:
        toward = toward - (inputs.x / inputs.rows)[..., None] * (sums.y / inputs.rows)[..., None, :]
    rest = toward - spread @ now.weight.mT
    del toward
    for share in RIDGES:
        factor, sound = inputs.factor(spread, centred, share)
        if bool(sound.any()):
            change = torch.cholesky_solve(rest, factor).mul_(sound[..., None, None])  # the others stay
            weight, how = change.mT.add_(now.weight), f"ridge {share:g}"
            yield _centred(sums, weight, how) if centred else Fit(weight, None, how)


def _centred(sums: Sums, weight: Tensor, how: str) -> Fit:
    """Return the fit of a weight with the bias that leaves no mean error."""
    return Fit(weight, (sums.y - _times(weight, sums.inputs.x)) / sums.inputs.rows, how)


def _times(weight: Tensor, vector: Tensor) -> Tensor:
    return (weight @ vector[..., None])[..., 0]


def best(sums: Sums, held: Sums, now: Fit, ridge: bool) -> tuple[Fit, float, float]:
    """Return (the fit with the least error on held-back rows, its error there, the error there of the current weights)."""
    before = held.error(now)
    if before < NEGLIGIBLE:
        return now, before, before
    least, error = now, before
    for fit in fits_to_compare(sums, now, ridge):
        own = held.error(fit)
        if own < error:
            least, error = fit, own
    return least, error, before
