"""Merge factors: two products with nothing between become one where that is no larger, and compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import capture, show, shrink
from fxprune.analysis import analyze, matrices
from fxprune.ir import Program, Selection
from fxprune.passes import parse_pipeline
from fxprune.rewrite.factorize import factorize
from fxprune.rewrite.merge_factors import merge_factors, pairs
from support.gated import family
from support.models import distance


def outputs(program: Program) -> Any:
    return program(*program.args, **program.kwargs)


def matrices_of(program: Program) -> list[str]:
    return [m.weight for m in matrices(program, analyze(program).flow).values() if ".0." in m.weight]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
def test_factors_of_full_rank_merge_back(name: str) -> None:
    """Into matrices of the same names and sizes: linear, and addmm with its weights turned."""
    program = family(name)
    weights = matrices_of(program)
    apart = factorize(program, {each: min(program.tensors()[each].shape) for each in weights}).program
    whole = merge_factors(apart)
    assert len(pairs(apart)) == len(weights)
    assert not pairs(whole)
    assert {n: v.shape for n, v in whole.tensors().items()} == {
        n: v.shape for n, v in program.tensors().items()
    }
    assert distance(outputs(whole), outputs(program)) < 1e-4


def test_factors_that_save_something_stay() -> None:
    """Of a matrix of 32 × 64 those of less than rank 21.3."""
    program = family("bert")
    name = "encoder.layer.0.intermediate.dense.weight"
    for rank, left in ((21, True), (22, False)):
        done = parse_pipeline("fold").run(factorize(program, {name: rank}).program).program
        assert (f"{name}_rows" in done.tensors()) == left


def test_a_shared_factor_is_weighed_with_all_that_read_it() -> None:
    """Rank 24 of 96 × 32: 3,072 parameters beside 3,072."""
    torch.manual_seed(0)
    thin = nn.Linear(32, 24, bias=False)
    outs = nn.ModuleList(nn.Linear(24, 32) for _ in range(3))

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.thin, self.outs = thin, outs

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            inner = self.thin(x)
            return tuple(out(inner) for out in self.outs)

    program = capture(Three().eval(), (torch.randn(2, 32),))
    (pair,) = pairs(program)
    assert (pair.rank, pair.sizes, pair.is_even) == (24, (32, 32, 32, 32), True)
    whole = merge_factors(program)
    assert distance(outputs(whole), outputs(program)) < 1e-5
    assert whole.parameter_count() == 3 * (32 * 32 + 32)


class Convolutions(nn.Module):
    """A kernel of nine points with stride and a bias, then one of one point."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 40, 3, stride=2, padding=1)
        self.second = nn.Conv2d(40, 6, 1)
        self.third = nn.Conv2d(6, 4, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.third(self.second(self.first(x)).relu())
        return out


def test_a_convolution_takes_up_the_point_behind_it() -> None:
    torch.manual_seed(0)
    program = capture(Convolutions().eval(), (torch.randn(2, 3, 9, 9),))
    whole = merge_factors(program)
    assert distance(outputs(whole), outputs(program)) < 1e-5
    shapes = [tuple(v.shape) for v in whole.tensors().values() if v.ndim > 1]
    assert sorted(shapes) == [(4, 6, 1, 1), (6, 3, 3, 3)]


def test_a_convolution_of_volumes_takes_up_the_point_behind_it() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(3, 40, (1, 2, 3), stride=2, padding=1, dilation=2), nn.Conv3d(40, 6, 1))
    program = capture(net.eval(), (torch.randn(2, 3, 6, 7, 8),))
    whole = merge_factors(program)
    assert distance(outputs(whole), outputs(program)) < 1e-5
    assert [tuple(v.shape) for v in whole.tensors().values() if v.ndim > 1] == [(6, 3, 1, 2, 3)]


def test_products_of_different_operators_merge() -> None:
    """Of one linear and one mm: both take two dims here."""
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6, bias=False), nn.Parameter(torch.randn(6, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.mm(self.first(x), self.second)

    program = capture(Mixed().eval(), (torch.randn(3, 4),))
    whole = merge_factors(program)
    assert distance(outputs(whole), outputs(program)) < 1e-5
    assert [tuple(v.shape) for v in whole.tensors().values()] == [(4, 5)]


def test_what_was_between_is_no_pair() -> None:
    """An activation, another reader, an output."""
    torch.manual_seed(0)

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            inner = self.a(x)
            return self.b(inner), inner

    for net in (Seen(), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))):
        program = capture(net.eval(), (torch.randn(2, 4),))
        assert pairs(program) == []
        assert merge_factors(program) is program


def test_heads_that_go_leave_factors_that_fold_joins() -> None:
    """Half of the columns gone, the same rank saves nothing any more."""
    program = family("bert")
    name = "encoder.layer.1.attention.output.dense.weight"
    apart = factorize(program, {name: 14}).program
    axis = "encoder.layer.1.attention.heads"
    cut = shrink(apart, Selection({axis: [0, 2]}))
    done = parse_pipeline("fold").run(cut).program
    assert done.tensors()[name].shape == (32, 16)
    assert distance(outputs(done), outputs(cut)) < 1e-5


def test_before_and_after() -> None:
    """Through a rank of 6, two matrices of 8 × 6 are larger than one of 8 × 8."""
    program = capture(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8)), (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
input_1: (!3, !8)
0.weight: (rank:6, !8)
0.bias: (rank:6)
linear = linear(input_1, 0.weight, 0.bias) -> (!3, rank:6)
1.weight: (!8, rank:6)
1.bias: (!8)
linear_1 = linear(linear, 1.weight, 1.bias) -> (!3, !8)
return linear_1""",
    )
    assert_expected_inline(
        show(merge_factors(program)),
        """\
input_1: (!3, !8)
1.weight_merged: (!8, !8)
1.bias_merged: (!8)
linear_1 = linear(input_1, 1.weight_merged, 1.bias_merged) -> (!3, !8)
return linear_1""",
    )
