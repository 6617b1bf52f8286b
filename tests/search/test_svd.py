"""SVD: a matrix as a sum of terms, best first, plain or whitened by the data, and the error without the last of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze, capture
from fxprune.calibration import Calibration, Objective, check_calibration
from fxprune.ir import Program
from fxprune.rewrite.factorize import factorize
from fxprune.search.rank_plans import groups, levels, with_members
from fxprune.search.svd import Spectrum, plain_spectra, whitened_spectra
from support.gated import family
from support.models import distance


def skewed(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs that lie mostly in some directions, around a mean."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=random) * torch.logspace(1, -2, columns)
    return torch.randn(rows, columns, generator=random) @ mixed.t() + 2.0


def layer(bias: bool = True) -> tuple[Program, Calibration, Tensor]:
    torch.manual_seed(0)
    net = nn.Linear(24, 16, bias=bias)
    program = capture(net.eval(), (torch.randn(3, 24),), dynamic_shapes=True)
    inputs = skewed(512, 24)
    name = program.input_names()[0]
    return program, check_calibration(program, [{name: part} for part in inputs.split(64)]), inputs


def spectrum(program: Program, data: Calibration | None, whiten: bool = True) -> Spectrum:
    found = groups(analyze(program))
    made = (
        whitened_spectra(program, found, data, Objective(), whiten) if data else plain_spectra(program, found)
    )
    return made[0]


def cut(program: Program, found: Spectrum, rank: int) -> Tensor:
    """The matrix that is left."""
    rows, columns = found.factors(rank, program.tensors())["weight"]
    return rows @ columns


@pytest.mark.parametrize("whiten", [True, False])
def test_all_terms_are_the_matrix(whiten: bool) -> None:
    program, data, _ = layer()
    weight = program.tensors()["weight"].detach()
    found = spectrum(program, data, whiten)
    assert distance(cut(program, found, 16), weight) < 1e-5
    assert float(found.errors[-1]) == 0
    assert bool((found.errors[1:] <= found.errors[:-1] + 1e-12).all())


def test_the_whitened_terms_miss_less_of_the_outputs() -> None:
    """By far, where inputs are skewed; and exactly what their energy says."""
    program, data, inputs = layer(bias=False)
    weight = program.tensors()["weight"].detach()
    white, bare = spectrum(program, data), spectrum(program, None)
    missed = [
        float(
            (inputs @ (cut(program, each, 4) - weight).t()).square().sum()
            / (inputs @ weight.t()).square().sum()
        )
        for each in (white, bare)
    ]
    assert missed[0] < 0.2 * missed[1]
    assert missed[0] == pytest.approx(white.missing(4), rel=0.1)


def test_errors_are_what_the_outputs_lose() -> None:
    """In the objective's currency, squared distance over squares: here the matrix makes the output itself."""
    for whiten in (True, False):
        program, data, inputs = layer()
        found = spectrum(program, data, whiten)
        weight = program.tensors()["weight"].detach()
        bias = found.biases(4, program.tensors())["bias"]
        before, after = program(inputs), inputs @ cut(program, found, 4).t() + bias
        lost = float((before - after).square().sum() / before.square().sum())
        assert float(found.errors[4]) == pytest.approx(lost, rel=0.15)
        assert not torch.equal(bias, program.tensors()["bias"])
        assert distance((after.mean(0)), before.mean(0)) < 1e-4
        assert weight.shape == (16, 24)


def test_few_rows_leave_the_rest_to_the_weights() -> None:
    """Eight inputs of 24 numbers: their moment is singular."""
    program, _, _ = layer()
    name = program.input_names()[0]
    data = check_calibration(program, [{name: part} for part in skewed(8, 24).split(4)])
    found = spectrum(program, data)
    assert bool(found.left.isfinite().all() and found.right.isfinite().all())
    assert found.rank_of(0.999) <= 8
    assert distance(cut(program, found, 16), program.tensors()["weight"].detach()) < 1e-3


def test_energy_says_how_many_terms() -> None:
    found = spectrum(layer()[0], None)
    for energy in (0.5, 0.9, 0.999):
        rank = found.rank_of(energy)
        assert found.missing(rank) <= 1 - energy + 1e-12
        assert found.missing(rank - 1) > 1 - energy
    assert found.rank_of(1.0) == 16


@pytest.mark.parametrize(
    ("name", "sizes"), [("bert", [3, 1, 1, 1]), ("gpt2", [1, 1, 1, 1]), ("llama", [3, 1, 2, 1])]
)
def test_matrices_that_read_one_value_belong_together(name: str, sizes: list[int]) -> None:
    """Queries, keys and values; gate and up. GPT-2's are one matrix."""
    found = groups(analyze(family(name)))
    assert [len(group) for group in found[:4]] == sizes
    assert len(groups(analyze(family(name)), apart=True)) == sum(map(len, found))
    assert len(with_members(found)) == len(found) + sum(len(group) for group in found if len(group) > 1)


def test_factors_are_not_taken_apart_again() -> None:
    program = family("bert")
    name = "encoder.layer.0.output.dense.weight"
    found = groups(analyze(factorize(program, {name: 8}).program))
    assert not any(name in matrix.weight for group in found for matrix in group)


def test_a_group_shares_the_factor_that_reads_its_input() -> None:
    program = family("gpt2")
    found = groups(analyze(family("bert")))[0]
    (made,) = plain_spectra(family("bert"), [found])
    factors = list(made.factors(8, family("bert").tensors()).values())
    assert all(columns is factors[0][1] for _, columns in factors)
    (turned,) = plain_spectra(program, [groups(analyze(program))[0]])
    rows, columns = next(iter(turned.factors(8, program.tensors()).values()))
    assert (rows.shape, columns.shape) == ((32, 8), (8, 96))


def test_levels_are_widths_that_runtimes_like() -> None:
    """Below the rank at which nothing is saved: 192 for 384 × 384, 307 for 384 × 1536."""
    assert levels(192) == [16, 32, 48, 64, 96, 112, 144, 160]
    assert all(rank % 16 == 0 and rank < 307 for rank in levels(307.2))
    assert levels(20) == [1, 2, 3, 5, 7, 10, 12, 15, 17]
    assert levels(1.5) == [1]
