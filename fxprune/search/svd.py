"""Singular value decomposition, plain or whitened: matrices as sums of rank-one terms, best first, and the errors of truncation.

Plain, the terms are those of W (Eckart and Young). Whitened, they are those of W S, with S Sᵀ the second moment of the inputs, so that the
term that is dropped first is the one whose absence changes the outputs least: W S = U Σ Vᵀ, A = U √Σ, B = √Σ Vᵀ S⁻¹ (SVD-LLM, arXiv
2403.07378; here with the eigenvalues' root, which singular moments have, too). Where the product has a bias, moments are about the mean,
for the bias makes up for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxprune.analysis import Matrix
from fxprune.calibration import Calibration, Objective
from fxprune.calibration.memory import moments_limit
from fxprune.calibration.run import pack_by_bytes, run_calibration
from fxprune.calibration.second_moments import MomentObserver, Moments, moment_bytes
from fxprune.ir import Program
from fxprune.rewrite.factorize import Factors
from fxprune.storage import let_go

_DAMPING = 1e-3
"""Damping of the inputs' moment, as a share of its mean eigenvalue: directions that are rare in the data count a little."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Matrices that read one value, stacked, as `left` [outputs, n] @ `right` [n, columns], float64.

    `energy` [n] are the squares of singular values. `errors` [n + 1] are those with so many terms: with data, the expected
    change by the objective (K-FAC, as for scores); without, a share of the squared norm. `mean` is the mean input that biases make up
    for, where the products have one.
    """

    matrices: tuple[Matrix, ...]
    left: Tensor
    right: Tensor
    energy: Tensor
    errors: Tensor
    mean: Tensor | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """(Outputs of all matrices, columns)."""
        return len(self.left), self.right.shape[1]

    @property
    def even(self) -> float:
        """Rank at which factors have as many parameters as the matrices."""
        outputs, columns = self.sizes
        return outputs * columns / (outputs + columns)

    def on_cpu(self) -> Spectrum:
        """Return the spectrum with its tensors on the CPU, as those of programs are."""
        mean = self.mean if self.mean is None else self.mean.cpu()
        own = {name: getattr(self, name).cpu() for name in ("left", "right", "energy", "errors")}
        return replace(self, **own, mean=mean)

    def rank_of(self, energy: float) -> int:
        """Return the least rank that contains this share of the energy."""
        shares = self.energy.cumsum(0) / self.energy.sum().clamp_min(1e-300)
        return min(int((shares < energy).sum()) + 1, len(self.energy))

    def missing(self, rank: int) -> float:
        """Return the share of the energy beyond a rank."""
        return float(self.energy[rank:].sum() / self.energy.sum().clamp_min(1e-300))

    def factors(self, rank: int, tensors: dict[str, Tensor]) -> dict[str, Factors]:
        """Return the factors of each weight, as it is stored; the factor that reads the input is one tensor for all."""
        first = tensors[self.matrices[0].weight]
        shared = self.right[:rank].to(first.dtype)
        turned = shared.t().contiguous()
        found: dict[str, Factors] = {}
        for matrix, rows in zip(self.matrices, self._parts(self.left[:, :rank], tensors), strict=True):
            own = rows.to(first.dtype)
            found[matrix.weight] = (turned, own.t().contiguous()) if matrix.turned else (own, shared)
        return found

    def biases(self, rank: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the new biases by name, which preserve the mean output; none without `mean`."""
        if self.mean is None:
            return {}
        lost = self.left[:, rank:] @ (self.right[rank:] @ self.mean)
        parts = self._parts(lost, tensors)
        named = {matrix.bias: part for matrix, part in zip(self.matrices, parts, strict=True) if matrix.bias}
        return {name: tensors[name].detach() + part.to(tensors[name].dtype) for name, part in named.items()}

    def _parts(self, stacked: Tensor, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        sizes = [len(matrix.read(tensors[matrix.weight])) for matrix in self.matrices]
        return tuple(stacked.split(sizes))


MatrixGroup = tuple[Matrix, ...]
"""Matrices that read one value."""


def plain_spectra(program: Program, groups: Sequence[MatrixGroup]) -> list[Spectrum]:
    """Return the spectra of the weights alone."""
    return [_plain(group, _stacked(program, group)) for group in groups]


def _plain(group: MatrixGroup, weight: Tensor) -> Spectrum:
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    energy = s.square()
    return Spectrum(group, u * s.sqrt(), s.sqrt()[:, None] * v, energy, _tails(energy) / energy.sum())


def whitened_spectra(
    program: Program,
    groups: Sequence[MatrixGroup],
    data: Calibration,
    objective: Objective,
    whiten: bool = True,
    memory: int = 0,
) -> list[Spectrum]:
    """Return spectra whitened by the inputs' moments (`whiten`), or those of the weights alone; errors are by the data in both cases.

    Moments that exceed `memory` bytes (where it is 0: `moments_limit`) are accumulated in several passes.
    """
    own = list({matrix.node.name: matrix for group in groups for matrix in group}.values())
    limit = memory or moments_limit(program)
    found: dict[int, Spectrum] = {}
    places = sorted(range(len(groups)), key=lambda i: own.index(groups[i][0]))
    for chunk in pack_by_bytes(places, lambda i: sum(map(moment_bytes, groups[i])), limit):
        wanted = list({m.node.name: m for i in chunk for m in groups[i]}.values())
        meter = MomentObserver(wanted)
        run_calibration(program, data, [meter], objective)
        for i in chunk:
            found[i] = _informed(program, groups[i], meter.moments, whiten).on_cpu()
    return [found[i] for i in range(len(groups))]


def _informed(program: Program, group: MatrixGroup, moments: dict[str, Moments], whiten: bool) -> Spectrum:
    first = moments[group[0].node.name]
    centred = all(matrix.bias for matrix in group)
    spread = first.spread(centred)
    weight = _stacked(program, group).to(spread.device)
    mean = first.total / first.rows if centred else None
    squares = (_square(moments[m.node.name].slopes, m, program).to(spread.device) for m in group)
    slopes = torch.block_diag(*squares)
    if not whiten:
        bare = _plain(group, weight)
        lost = _lost(bare.left, bare.right, slopes, spread)
        return Spectrum(group, bare.left, bare.right, bare.energy, lost, mean)
    root, inverse = _roots(spread)
    u, s, v = torch.linalg.svd(weight @ root, full_matrices=False)
    left, right = u * s.sqrt(), s.sqrt()[:, None] * (v @ inverse)
    return Spectrum(group, left, right, s.square(), _lost(left, right, slopes, spread), mean)


def _stacked(program: Program, group: MatrixGroup) -> Tensor:
    tensors = program.tensors()
    found = torch.cat([matrix.read(tensors[matrix.weight].detach()).double() for matrix in group])
    for matrix in group:
        let_go(tensors[matrix.weight])
    return found


def _square(slopes: Tensor, matrix: Matrix, program: Program) -> Tensor:
    """Return the moment of a result's gradients [outputs, outputs]; zero where no output depends on it."""
    size = len(matrix.read(program.tensors()[matrix.weight]))
    return slopes.double().expand(size, size)


def _roots(spread: Tensor) -> tuple[Tensor, Tensor]:
    """Return S with S Sᵀ = C, the damped moment, and its inverse."""
    values, vectors = torch.linalg.eigh(spread)
    mean = values.clamp_min(0).mean().clamp_min(1e-30)
    root = (values.clamp_min(0) + _DAMPING * mean).sqrt()
    return vectors * root, (vectors / root).t()


def _lost(left: Tensor, right: Tensor, slopes: Tensor, spread: Tensor) -> Tensor:
    """Return tr(G ΔW C ΔWᵀ) of the terms beyond each rank: sums of the lower right corners of (Lᵀ G L) ∘ (R C Rᵀ)."""
    products = (left.t() @ slopes @ left) * (right @ spread @ right.t())
    corners = products.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
    return torch.cat([corners, corners.new_zeros(1)]).clamp_min(0)


def _tails(values: Tensor) -> Tensor:
    """Return the sum of the values beyond each place, that of all values first."""
    return torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])
