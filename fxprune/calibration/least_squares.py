"""Ridge least squares for one matrix: the weights that bring its output closest to a target, chosen by the error on held-back rows.

The ridge pulls towards the current weights W [outputs, columns]: W + (D − W·C)(C + λI)⁻¹, with C the second moments of the inputs and D
those of targets and inputs (both about the means where there is a bias). Directions that the data do not determine stay as they are. Sums
are in float64. λ is a share of the mean diagonal of C: the one of RIDGES with the least error on held-back rows. The current weights stay
where no fit is better.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxprune.calibration.second_moments import ROWS, add_product

RIDGES = (1.0, 1e-1, 1e-2, 1e-3)
"""Strengths of the ridge to try, as shares of the mean diagonal of C."""

NEGLIGIBLE = 1e-10
"""Relative squared error below which rounding explains the difference, and no re-fit is tried."""

CONDITION = 1e12
"""Largest estimated condition number of normal equations that are solved."""


@dataclass
class Sums:
    """Sums over rows of inputs x [rows, columns] and targets y [rows, outputs]."""

    rows: int = 0
    x: Tensor = field(default_factory=lambda: torch.zeros(()))
    y: Tensor = field(default_factory=lambda: torch.zeros(()))
    xx: Tensor = field(default_factory=lambda: torch.zeros(()))
    xy: Tensor = field(default_factory=lambda: torch.zeros(()))
    yy: float = 0.0

    def take(self, inputs: Tensor, targets: Tensor) -> None:
        """Add the rows of one batch."""
        for x, y in zip(inputs.split(ROWS), targets.split(ROWS), strict=True):
            self._take(x.to(torch.float64), y.to(torch.float64))

    def _take(self, wide: Tensor, wanted: Tensor) -> None:
        self.rows += len(wide)
        self.x, self.y = self.x + wide.sum(0), self.y + wanted.sum(0)
        self.xx, self.xy = add_product(self.xx, wide, wide), add_product(self.xy, wide, wanted)
        self.yy += float(wanted.square().sum())

    def error(self, fit: Fit) -> float:
        """Return the relative squared error of a fit: Σ ‖prediction − target‖² / Σ ‖target‖²."""
        weight, bias = fit.weight, fit.bias
        moved = self.xx @ weight.t() - 2 * self.xy
        total = self.yy + float((weight.t() * moved).sum())
        if bias is not None:
            cross = (weight @ self.x - self.y) * 2 + self.rows * bias
            total += float((bias * cross).sum())
        return max(total, 0.0) / max(self.yy, 1e-300)


@dataclass(frozen=True, eq=False)
class Fit:
    """A matrix [outputs, columns] and a bias [outputs] (None where the operator has none); `how` is the method that gave them."""

    weight: Tensor
    bias: Tensor | None
    how: str = "as it was"


def _candidates(sums: Sums, now: Fit, ridge: bool) -> list[Fit]:
    """Return the fits to compare: the current weights, the mean in the bias if any (FLAP, arXiv 2312.11983), and ridges if `ridge`."""
    found = [now]
    if now.bias is not None:
        found.append(_centred(sums, now.weight, "mean"))
    return found + (_ridges(sums, now) if ridge else [])


def _ridges(sums: Sums, now: Fit) -> list[Fit]:
    has_bias = now.bias is not None
    mean = sums.x / sums.rows
    drop = torch.outer(mean, mean) if has_bias else 0.0
    spread = sums.xx / sums.rows - drop
    toward = sums.xy / sums.rows - (torch.outer(mean, sums.y / sums.rows) if has_bias else 0.0)
    rest = toward - spread @ now.weight.t()
    scale = float(spread.diagonal().mean())
    found = []
    for share in RIDGES if scale > 0 else ():
        change = _solved(spread, share * scale, rest)
        if change is not None:
            weight, how = now.weight + change.t(), f"ridge {share:g}"
            found.append(_centred(sums, weight, how) if has_bias else Fit(weight, None, how))
    return found


def _solved(spread: Tensor, ridge: float, rest: Tensor) -> Tensor | None:
    """Return (C + λI)⁻¹ R by Cholesky; None where the system is not positive definite or is worse conditioned than CONDITION."""
    damped = spread + ridge * torch.eye(len(spread), dtype=spread.dtype)
    factor, fault = torch.linalg.cholesky_ex(damped)
    diagonal = factor.diagonal()
    if int(fault) or float((diagonal.max() / diagonal.min()) ** 2) > CONDITION:
        return None
    return torch.cholesky_solve(rest, factor)


def _centred(sums: Sums, weight: Tensor, how: str) -> Fit:
    """Return the fit of a weight with the bias that leaves no mean error."""
    return Fit(weight, (sums.y - weight @ sums.x) / sums.rows, how)


def best(sums: Sums, held: Sums, now: Fit, ridge: bool) -> tuple[Fit, float, float]:
    """Return (the fit with the least error on held-back rows, its error there, the error there of the current weights)."""
    before = held.error(now)
    if before < NEGLIGIBLE:
        return now, before, before
    found = _candidates(sums, now, ridge)
    errors = [held.error(fit) for fit in found]
    place = min(range(len(found)), key=lambda i: errors[i])
    return found[place], errors[place], errors[0]
