# mypy: disable-error-code="no-any-return"
"""Depthwise kernels and batch norms: re-fitted as batches of matrices, and as the scale and bias of the convolution before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, Selection, analyze, apply, verify
from fxprune.analysis.linear_maps import linear_maps
from fxprune.calibration import least_squares
from fxprune.calibration.repair import repair
from fxprune.ir.interpreter import Recorder
from support.repaired import calibration, error, free, normal


class Inverted(nn.Module):
    """Expand, depthwise, project, each with a batch norm behind, on a residual stream, and a norm alone before all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.BatchNorm2d(6)
        self.expand, self.n1 = nn.Conv2d(6, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.deep, self.n2 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.project, self.n3 = nn.Conv2d(16, 6, 1), nn.BatchNorm2d(6)
        for norm in (self.first, self.n1, self.n2, self.n3):
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(value, 0.5, 1.5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.n1(self.expand(x)).relu()
        return x + self.n3(self.project(self.n2(self.deep(y)).relu()))


SIZES = (8, 6, 7, 7)


def program() -> Program:
    return free(Inverted(), *SIZES)


def test_what_a_fit_may_change_is_found() -> None:
    whole = program()
    flow = analyze(whole).flow
    names = {
        (kernels, norms): [each.weights for each in linear_maps(whole, flow, kernels, norms).values()]
        for kernels in (False, True)
        for norms in (False, True)
    }
    assert names[False, False] == [("expand.weight",), ("project.weight",)]
    assert names[True, False] == [("expand.weight",), ("deep.weight",), ("project.weight",)]
    assert names[False, True] == [
        ("first.weight",),
        ("expand.weight", "n1.weight"),
        ("n2.weight",),
        ("project.weight", "n3.weight"),
    ]
    assert names[True, True][2] == ("deep.weight", "n2.weight")


def test_what_is_read_is_what_the_nodes_compute_and_is_written_back() -> None:
    """Results = rows @ weight.T + bias; a map with other numbers computes those, also where a scale of the norm is zero."""
    whole = program()
    tensors = {name: value.detach().clone() for name, value in whole.tensors().items()}
    tensors["n2.weight"][3] = 0
    for each in linear_maps(whole, analyze(whole).flow, kernels=True, norms=True).values():
        random = torch.Generator().manual_seed(1)
        weight, bias = each.read(tensors)
        assert bias is not None
        other = (
            torch.randn(weight.shape, generator=random).double(),
            torch.randn(bias.shape, generator=random).double(),
        )
        for numbers in ((weight, bias), other):
            given = tensors | dict(each.write(*numbers, tensors)) if numbers is other else tensors
            run = Recorder(whole, given={name: given[name].detach() for name in given})
            with torch.no_grad():
                run.run(normal(*SIZES))
            rows, results = (
                each.rows(run.values[each.source]).double(),
                each.results(run.values[each.node]).double(),
            )
            made = rows @ numbers[0].mT + numbers[1][..., None, :]
            assert float((made - results).abs().max()) < 1e-4 * float(results.abs().max())


@pytest.mark.parametrize("how", ["readers+norms", "all", "all+kernels", "all+norms", "all+kernels+norms"])
def test_a_cut_net_comes_nearer(how: str) -> None:
    whole = program()
    (axis,) = [axis for axis in analyze(whole).axes if axis.size == 16]
    selection = Selection({axis.name: range(10)})
    slim, data = apply(whole, selection), calibration(whole, 6, *SIZES)
    done = repair(whole, slim, selection, data, how)
    assert all(fit.after <= fit.before for fit in done.matrices)
    assert verify(whole, done.program, selection, done.changed).relative <= 1e-5
    x = normal(32, *SIZES[1:], seed=99)
    assert error(done.program, whole, x) < 0.9 * error(slim, whole, x)


def test_each_row_buys_something_beside_matrices() -> None:
    """A convolution without a bias gets one from its norm, and the norm's sum is the residual stream's."""
    whole = program()
    (axis,) = [axis for axis in analyze(whole).axes if axis.size == 16]
    selection = Selection({axis.name: range(10)})
    slim, data, x = apply(whole, selection), calibration(whole, 6, *SIZES), normal(32, *SIZES[1:], seed=99)
    names = ("all", "all+kernels", "all+norms", "all+kernels+norms")
    errors = [error(repair(whole, slim, selection, data, how).program, whole, x) for how in names]
    assert errors[1] <= errors[0]
    assert max(errors[2:]) <= errors[0]


def test_a_depthwise_kernel_that_was_spoilt_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "RIDGES", (1e-9,))
    whole = program()
    spoilt = free(Inverted(), *SIZES)
    for name in ("deep.weight", "n2.weight", "n2.bias"):
        spoilt.tensors()[name].data += 0.3
    done = repair(whole, spoilt, Selection(), calibration(whole, 6, *SIZES), "all+kernels+norms")
    assert [fit.name for fit in done.matrices if fit.how != "as it was"] == ["deep.weight"]
    x = normal(32, *SIZES[1:], seed=99)
    assert error(spoilt, whole, x) > 1e-2
    assert error(done.program, whole, x) < 1e-8


def test_the_fit_of_a_reader_is_the_merge_of_what_it_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """W_kept + W_removed·C, with C the ridge regression of removed units on kept ones: the same numbers."""
    torch.manual_seed(0)
    x = torch.randn(200, 3) @ torch.randn(3, 9) + 0.1 * torch.randn(200, 9)
    weight, kept = torch.randn(4, 9).double(), torch.arange(6)
    sums = least_squares.Sums()
    sums.take(x[:, kept], (x.double() @ weight.T).float())
    now = least_squares.Fit(weight[:, kept], None)
    monkeypatch.setattr(least_squares, "RIDGES", (0.1,))
    fit, _, _ = least_squares.best(sums, sums, now, ridge=True)
    one, other = x[:, kept].double(), x[:, 6:].double()
    products = one.T @ one / len(x)
    ridge = 0.1 * products.diagonal().mean() * torch.eye(6).double()
    merge = torch.linalg.solve(products + ridge, one.T @ other / len(x)).T
    assert torch.allclose(fit.weight, weight[:, kept] + weight[:, 6:] @ merge, atol=1e-5)
