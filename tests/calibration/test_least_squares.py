# mypy: disable-error-code="no-any-return"
"""Least squares: each fit is a problem with a known answer, and is never worse on held-back rows; streams of every kind are repaired."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune import Selection, apply, capture
from fxprune.calibration import least_squares
from fxprune.calibration.least_squares import Fit, best
from fxprune.calibration.repair import repair
from support.repaired import (
    WIDTH,
    Counting,
    Latent,
    Parallel,
    Placed,
    Stream,
    calibration,
    differing,
    distance,
    error,
    free,
    normal,
    own_targets,
    problem,
    summed,
    two_layers,
    without_last,
)


@pytest.fixture
def every_warning() -> Iterator[None]:
    """Torch says again what it has said before."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_ridge_the_fit_is_least_squares(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "RIDGES", (1e-11,))
    x, y, now = problem(60, 5, 3, seed=0)
    now = now if bias else Fit(now.weight, None)
    columns = np.concatenate([x.numpy(), np.ones((60, 1))], 1) if bias else x.numpy()
    wanted = np.linalg.lstsq(columns.astype(np.float64), y.numpy().astype(np.float64), rcond=None)[0].T
    fit, error, before = best(summed(x, y), summed(x, y), now, ridge=True)
    found = fit.weight if fit.bias is None else torch.cat([fit.weight, fit.bias[:, None]], 1)
    assert fit.how == "ridge 1e-11"
    assert np.allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-7)
    assert error == pytest.approx(distance(fit, x, y), rel=1e-9)
    assert before == pytest.approx(distance(now, x, y), rel=1e-9)
    assert error < before / 2


@pytest.mark.parametrize("bias", [True, False])
def test_a_ridge_pulls_towards_the_weights_that_are_there(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "RIDGES", (0.5,))
    x, y, now = problem(60, 5, 3, seed=1)
    now = now if bias else Fit(now.weight, None)
    fit, _, _ = best(summed(x, y), summed(x, y), now, ridge=True)
    wide, target = x.double(), y.double()
    if bias:
        wide, target = wide - wide.mean(0), target - target.mean(0)
    strength = (0.5 * wide.square().mean() * len(x)).sqrt()
    rows = torch.cat([wide, strength * torch.eye(5)])
    wanted = torch.linalg.lstsq(rows, torch.cat([target, strength * now.weight.T])).solution.T
    assert torch.allclose(fit.weight, wanted, rtol=1e-8)
    if fit.bias is not None:
        assert torch.allclose(fit.bias, (y - x @ wanted.float().T).mean(0).double(), atol=1e-5)


def test_the_mean_goes_into_the_bias_and_nowhere_else() -> None:
    x, y, now = problem(60, 5, 3, seed=2)
    fit, _, _ = best(summed(x, y), summed(x, y), now, ridge=False)
    assert fit.how == "mean"
    assert fit.weight is now.weight
    assert fit.bias is not None
    assert torch.allclose(
        (x.double() @ fit.weight.T + fit.bias - y).mean(0), torch.zeros(3).double(), atol=1e-6
    )
    kept, _, _ = best(summed(x, y), summed(x, y), Fit(now.weight, None), ridge=False)
    assert (kept.how, kept.weight is now.weight) == ("as it was", True)


def test_what_is_right_already_stays() -> None:
    x, _, now = problem(60, 5, 3, seed=3)
    assert now.bias is not None
    right = x.double() @ now.weight.T + now.bias
    fit, error, before = best(summed(x, right), summed(x, right), now, ridge=True)
    assert fit is now
    assert error == before < 1e-10


def test_columns_that_say_the_same_are_not_solved_without_a_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, now = problem(60, 5, 3, seed=4)
    x[:, 4] = x[:, 1]
    monkeypatch.setattr(least_squares, "RIDGES", (1e-16,))
    assert best(summed(x, y), summed(x, y), now, ridge=True)[0].how == "mean"
    monkeypatch.setattr(least_squares, "RIDGES", (1e-16, 1e-3))
    fit = best(summed(x, y), summed(x, y), now, ridge=True)[0]
    assert fit.how == "ridge 0.001"
    assert bool(fit.weight.isfinite().all())


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(2, 30),
    columns=st.integers(1, 8),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 1000),
    bias=st.booleans(),
    ridge=st.booleans(),
    flat=st.booleans(),
)
def test_no_fit_is_worse_on_held_back_rows(
    rows: int, columns: int, outputs: int, seed: int, bias: bool, ridge: bool, flat: bool
) -> None:
    x, y, now = problem(2 * rows, columns, outputs, seed)
    if flat:  # a column that never changes, and one that is zero
        x[:, 0], x[:, -1] = 1.0, 0.0
    now = now if bias else Fit(now.weight, None)
    fit, after, before = best(summed(x[:rows], y[:rows]), summed(x[rows:], y[rows:]), now, ridge)
    assert after <= before
    assert after == pytest.approx(distance(fit, x[rows:], y[rows:]), rel=1e-6, abs=1e-9)
    assert before == pytest.approx(distance(now, x[rows:], y[rows:]), rel=1e-6, abs=1e-9)
    assert (fit is now) == (after == before)


def test_errors_of_many_outputs_are_summed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, now = problem(40, 5, 7, 0)
    whole = summed(x, y).error(now)
    monkeypatch.setattr(least_squares, "_OUTPUTS", 3)
    assert summed(x, y).error(now) == pytest.approx(whole, rel=1e-12)


def test_a_neuron_that_another_one_repeats_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    up, _, model = two_layers()
    with torch.no_grad():
        up.weight[9], up.bias[9] = up.weight[3], up.bias[3]
    program = free(model, 4, 6)
    selection = Selection({"ffn": [i for i in range(WIDTH) if i != 9]})
    slim, data, x = apply(program, selection), calibration(program, 8, 64, 6), normal(100, 6, seed=99)
    done = repair(program, slim, selection, data, "readers")
    assert error(slim, program, x) > 1e-3
    assert error(done.program, program, x) < 1e-6
    monkeypatch.setattr(least_squares, "RIDGES", (1e-9,))
    done = repair(program, slim, selection, data, "readers")
    assert (done.program(x) - program(x)).abs().max() < 1e-4
    whole, cut = program.tensors()["2.weight"], done.program.tensors()["2.weight"]
    assert torch.allclose(cut[:, 3], whole[:, 3] + whole[:, 9], atol=1e-4)


def test_what_a_constant_neuron_brings_goes_into_the_bias() -> None:
    up, down, model = two_layers()
    with torch.no_grad():
        up.weight[9], up.bias[9] = 0.0, 0.7
    program = free(model, 4, 6)
    selection = Selection({"ffn": [i for i in range(WIDTH) if i != 9]})
    slim = apply(program, selection)
    done = repair(program, slim, selection, calibration(program, 8, 64, 6), "mean")
    assert torch.allclose(done.program.tensors()["2.bias"], down.bias + 0.7 * down.weight[:, 9], atol=1e-6)
    assert done.changed == ("2.bias",) == tuple(differing(slim, done.program))
    assert error(done.program, program, normal(100, 6, seed=99)) < 1e-12 < error(slim, program, normal(9, 6))
    assert [(entry.name, entry.how) for entry in done.matrices] == [("2.weight", "mean")]


def test_targets_in_the_stream_make_up_for_what_it_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    program = free(Stream(), 4, 6)
    selection = without_last(program, 8)
    slim, data, x = apply(program, selection), calibration(program, 8, 128, 6), normal(500, 6, seed=99)
    summed_up = repair(program, slim, selection, data, "readers")
    monkeypatch.setattr("fxprune.calibration.refits._residual_sum", own_targets)
    alone = repair(program, slim, selection, data, "readers")
    assert error(summed_up.program, program, x) < 0.9 * error(alone.program, program, x)
    assert error(alone.program, program, x) < error(slim, program, x)


@pytest.mark.usefixtures("every_warning")
@pytest.mark.parametrize("kind", [Stream, Parallel, Placed, Latent, Counting])
def test_streams_of_every_kind_are_repaired(kind: type[Stream]) -> None:
    model = kind()
    program = capture(model.eval(), (torch.randn(32, 6),))
    selection = without_last(program, 6)
    slim, data = apply(program, selection), calibration(program, 8, 32, 6)
    before = {name: value.clone() for name, value in program.tensors().items()}
    done = repair(program, slim, selection, data)
    assert [entry.name for entry in done.matrices] == [
        "a.up.weight",
        "a.down.weight",
        "b.up.weight",
        "b.down.weight",
        "head.weight",
    ]
    assert all(torch.equal(before[name], value) for name, value in program.tensors().items())
    last = done.matrices[-1]
    assert last.after <= last.before
    x = normal(32, 6, seed=99)
    if kind is not Counting:
        assert error(done.program, program, x) < 0.5 * error(slim, program, x)


def test_of_many_outputs_a_sample_tells_the_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, now = problem(90, 40, 50, seed=3)
    held = problem(90, 40, 50, seed=3)[:2]
    every, error, before = best(summed(x[:60], y[:60]), summed(held[0][60:], held[1][60:]), now, ridge=True)
    monkeypatch.setattr(least_squares, "SAMPLE", 12)
    some, sampled, was = best(summed(x[:60], y[:60]), summed(held[0][60:], held[1][60:]), now, ridge=True)
    assert every.how.startswith("ridge")
    assert some.how == every.how
    assert torch.equal(some.weight, every.weight)
    assert (sampled, was) == (error, before)
