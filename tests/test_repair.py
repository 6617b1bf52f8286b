# mypy: disable-error-code="no-any-return"
# A module called is Any to the type checker.
"""Repair: each fit is a least-squares problem with a known answer, is never worse on held-back rows, and changes weights only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune import Program, Selection, analyze, apply, capture, refit, verify
from fxprune import repair as repairs
from fxprune.calibration import Calibration
from fxprune.errors import UsageError
from fxprune.refit import Fit, Sums, best
from fxprune.repair import REPAIRS, Repaired, repair
from models import HUGGING_FACE, captured

FREE = torch.export.Dim.AUTO
WIDTH = 16


def summed(x: Tensor, y: Tensor) -> Sums:
    """Taken in two parts."""
    sums, place = Sums(), len(x) // 3
    sums.take(x[:place], y[:place])
    sums.take(x[place:], y[place:])
    return sums


def problem(rows: int, columns: int, outputs: int, seed: int) -> tuple[Tensor, Tensor, Fit]:
    """Inputs whose means are not zero, noisy targets, and weights that are not the best."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=random) + torch.randn(columns, generator=random)
    wanted = torch.randn(outputs, columns, generator=random)
    y = x @ wanted.T + torch.randn(rows, outputs, generator=random) + 2
    weight = (wanted + 0.3 * torch.randn(outputs, columns, generator=random)).double()
    return x, y, Fit(weight, torch.randn(outputs, generator=random).double())


def distance(fit: Fit, x: Tensor, y: Tensor) -> float:
    given = x.double() @ fit.weight.T + (0.0 if fit.bias is None else fit.bias)
    return float((given - y).square().sum() / y.double().square().sum())


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_ridge_the_fit_is_least_squares(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "RIDGES", (1e-11,))
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
    monkeypatch.setattr(refit, "RIDGES", (0.5,))
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
    monkeypatch.setattr(refit, "RIDGES", (1e-16,))
    assert best(summed(x, y), summed(x, y), now, ridge=True)[0].how == "mean"
    monkeypatch.setattr(refit, "RIDGES", (1e-16, 1e-3))
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


class Branch(nn.Module):
    """A norm, and two layers with units between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(self.norm(x)).relu())


class Stream(nn.Module):
    """Two branches on a residual stream, in the order that a subclass says."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = Branch(), Branch(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return self.head(x + self.b(x))


class Parallel(Stream):
    """Both branches are computed before either is added."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.head(x + a + b)


class Placed(Stream):
    """A table of positions as large as the value is added to a matrix's result."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(32, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) + self.place
        return self.head(x + self.b(x))


class Counting(Stream):
    """Counts its runs in a buffer, and what it gives depends on the count."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.add_(1)
        return super().forward(x * self.runs)


def free(model: nn.Module, *sizes: int) -> Program:
    """Captured with a free batch."""
    return capture(model.eval(), (torch.randn(sizes),), dynamic=({0: FREE},))


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def calibration(program: Program, count: int, *sizes: int) -> Calibration:
    name = program.input_names()[0]
    return Calibration(tuple({name: normal(*sizes, seed=seed)} for seed in range(count)))


def without_last(program: Program, gone: int = 4) -> Selection:
    """Every exact axis that nothing surrounds loses its last units."""
    axes = [axis for axis in analyze(program).axes if axis.exact and axis.role in ("ffn", "channels")]
    return Selection({axis.name: range(axis.size - gone) for axis in axes})


def differing(one: Program, other: Program) -> list[str]:
    tensors = other.tensors()
    return [name for name, value in one.tensors().items() if not torch.equal(value, tensors[name])]


def error(program: Program, original: Program, *inputs: Tensor) -> float:
    """The mean squared difference of the outputs, relative to their squares."""
    pairs = [(program(x), original(x)) for x in inputs]
    return sum(float((a - b).square().sum() / b.square().sum()) for a, b in pairs) / len(pairs)


def two_layers() -> tuple[nn.Linear, nn.Linear, nn.Module]:
    torch.manual_seed(0)
    up, down = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 4)
    return up, down, nn.Sequential(up, nn.ReLU(), down)


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
    monkeypatch.setattr(refit, "RIDGES", (1e-9,))
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


def own_targets(node: Any, order: Any) -> tuple[Any, None]:
    return node, None


def test_targets_in_the_stream_make_up_for_what_it_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    program = free(Stream(), 4, 6)
    selection = without_last(program, 8)
    slim, data, x = apply(program, selection), calibration(program, 8, 128, 6), normal(500, 6, seed=99)
    summed_up = repair(program, slim, selection, data, "readers")
    monkeypatch.setattr(repairs, "_meets", own_targets)
    alone = repair(program, slim, selection, data, "readers")
    assert error(summed_up.program, program, x) < 0.9 * error(alone.program, program, x)
    assert error(alone.program, program, x) < error(slim, program, x)


@pytest.mark.parametrize("kind", [Stream, Parallel, Placed, Counting])
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


def test_a_graph_that_counts_its_runs_counts_those_of_each_batch_alone() -> None:
    """With the count at one, what it computes is what the plain stream computes."""
    fits = []
    for kind in (Stream, Counting):
        program = free(kind(), 4, 6)
        selection = without_last(program)
        done = repair(program, apply(program, selection), selection, calibration(program, 4, 32, 6))
        fits.append([(entry.name, entry.how, entry.after) for entry in done.matrices])
    assert fits[0] == fits[1]


def test_a_sum_that_comes_late_is_met_by_all() -> None:
    """In parallel branches the first target lies behind the second matrix; each entry is as good as alone."""
    program = free(Parallel(), 4, 6)
    selection = without_last(program, 6)
    done = repair(program, apply(program, selection), selection, calibration(program, 8, 64, 6), "readers")
    assert [entry.name for entry in done.matrices] == ["a.down.weight", "b.down.weight"]
    assert all(entry.after < entry.before / 2 for entry in done.matrices)


def test_what_lost_nothing_stays_the_same_object() -> None:
    program = free(Stream(), 4, 6)
    selection = Selection({"b.ffn": range(WIDTH - 4)})
    slim = apply(program, selection)
    done = repair(program, slim, selection, calibration(program, 8, 64, 6))
    assert [entry.how for entry in done.matrices[:3]] == ["as it was"] * 3
    assert max(entry.before for entry in done.matrices[:3]) < 1e-10
    one, other = slim.tensors(), done.program.tensors()
    same = {name for name in one if one[name] is other[name]}
    assert same == set(one) - set(done.changed)
    assert (
        set(done.changed)
        == {"b.down.weight", "b.down.bias", "head.weight", "head.bias"}
        == set(differing(slim, done.program))
    )


class Placewise(nn.Module):
    """A point-wise convolution over places that a cut takes away, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.mix, self.down = nn.Linear(6, WIDTH), nn.Conv1d(7, 7, 1), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        return self.down(h * self.mix(h))


def test_places_go_with_the_units_that_lie_along_them() -> None:
    program = free(Placewise(), 4, 7, 6)
    selection = Selection({"ffn": range(WIDTH - 4)})
    slim = apply(program, selection)
    done = repair(program, slim, selection, calibration(program, 8, 16, 7, 6))
    assert [(entry.name, entry.how == "as it was") for entry in done.matrices] == [
        ("up.weight", True),
        ("mix.weight", True),
        ("down.weight", False),
    ]
    x = normal(50, 7, 6, seed=99)
    assert error(done.program, program, x) < error(slim, program, x)


def test_every_value_is_dropped_after_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    runners: list[repairs._Runner] = []
    begin = repairs._Runner.__init__

    def noted(runner: repairs._Runner, program: Program, *rest: Any) -> None:
        begin(runner, program, *rest)
        runners.append(runner)

    monkeypatch.setattr(repairs._Runner, "__init__", noted)
    program = free(Parallel(), 4, 6)
    selection = without_last(program)
    repair(program, apply(program, selection), selection, calibration(program, 2, 8, 6))
    assert len(runners) == 4
    for runner in runners:
        assert [node.name for node in runner.env if not runner.readers[node]] == []
        assert len(runner.env) <= 2  # what the last matrix reads, and what it gives


def test_progress_counts_the_matrices() -> None:
    said: list[tuple[int, int]] = []
    program = free(Stream(), 4, 6)
    selection = without_last(program)
    slim, data = apply(program, selection), calibration(program, 2, 16, 6)
    repair(program, slim, selection, data, "all", lambda *numbers: said.append(numbers))
    assert said == [(place, 5) for place in range(5)]


def test_a_single_batch_is_split_by_rows_where_they_are_free() -> None:
    program = free(Stream(), 4, 6)
    selection = without_last(program)
    slim = apply(program, selection)
    done = repair(program, slim, selection, calibration(program, 1, 200, 6))
    assert error(done.program, program, normal(99, 6, seed=99)) < error(slim, program, normal(99, 6, seed=99))
    fixed = capture(Stream().eval(), (torch.randn(8, 6),))
    with pytest.raises(UsageError, match="give at least 2 batches"):
        repair(fixed, apply(fixed, selection), selection, calibration(fixed, 1, 8, 6))


def family_batches(name: str, count: int, seed: int) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    if name == "resnet":
        return [{"pixel_values": torch.randn(6, 2, 32, 32, generator=random)} for _ in range(count)]
    ids = [torch.randint(0, 99, (8, 11), generator=random) for _ in range(count)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]


def moved(program: Program, original: Program, batches: Sequence[dict[str, Tensor]]) -> float:
    """The mean relative squared difference of the first output."""
    pairs = [(first(program(**batch)), first(original(**batch))) for batch in batches]
    return sum(float((a - b).square().sum() / b.square().sum()) for a, b in pairs) / len(pairs)


def first(outputs: Any) -> Tensor:
    return next(value for value in outputs.values() if isinstance(value, Tensor))


def quarter_less(program: Program) -> Selection:
    """A quarter of the neurons, channels and heads goes, and a unit of what lies within heads."""
    roles = {"ffn": 0.75, "channels": 0.75, "heads": 0.75, "qk": 0.9, "v": 0.9}
    axes = [axis for axis in analyze(program).axes if axis.exact and axis.role in roles]
    axes = [axis for axis in axes if "queries" not in axis.name and axis.size > 2]
    return Selection({axis.name: range(int(axis.size * roles[axis.role])) for axis in axes})


def repaired(name: str, selection: Selection, how: str) -> tuple[Program, Program, Repaired]:
    program = captured(name, dynamic=True)
    slim = apply(program, selection)
    data = Calibration(tuple(family_batches(name, 8, seed=0)))
    return program, slim, repair(program, slim, selection, data, how)


@pytest.mark.parametrize("how", REPAIRS)
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_families_are_repaired_in_every_way(name: str, how: str) -> None:
    selection = quarter_less(captured(name, dynamic=True))
    program, slim, done = repaired(name, selection, how)
    assert str(done.program.graph.graph) == str(slim.graph.graph)
    assert list(done.changed) == [n for entry in done.matrices for n in entry.tensors]
    assert sorted(done.changed) == sorted(differing(slim, done.program))
    assert bool(done.changed) == (how != "none" and (name, how) != ("llama", "mean"))  # Llama has no biases
    assert all(entry.after <= entry.before for entry in done.matrices)
    assert verify(program, done.program, selection, done.changed).relative <= 1e-5
    fresh = family_batches(name, 2, seed=1)
    assert moved(done.program, program, fresh) <= 1.05 * moved(slim, program, fresh)


def test_families_are_closer_with_all_than_without() -> None:
    for name in HUGGING_FACE:
        program, slim, done = repaired(name, quarter_less(captured(name, dynamic=True)), "all")
        fresh = family_batches(name, 2, seed=1)
        assert moved(done.program, program, fresh) < 0.7 * moved(slim, program, fresh), name


@pytest.mark.parametrize(
    ("name", "removed"),
    [("bert", "encoder.layer.0.ffn"), ("gpt2", "transformer.h.0"), ("llama", "model.layers.1.attention")],
)
def test_what_follows_a_removed_branch_makes_up_for_it(name: str, removed: str) -> None:
    whole = captured(name, dynamic=True)
    inside = removed.rpartition(".")[0] if removed.endswith(("ffn", "attention")) else removed
    axes = {axis: kept for axis, kept in quarter_less(whole).axes.items() if not axis.startswith(inside)}
    selection = Selection(axes, removed=(removed,))
    program, slim, done = repaired(name, selection, "all")
    assert not [entry.name for entry in done.matrices if entry.name not in slim.tensors()]
    assert sorted(done.changed) == sorted(differing(slim, done.program))
    assert verify(program, done.program, selection, done.changed).relative <= 1e-5
    fresh = family_batches(name, 2, seed=1)
    assert moved(done.program, program, fresh) < moved(slim, program, fresh)


def test_heads_that_keep_their_own_dims_are_repaired() -> None:
    names = [f"encoder.layer.{i}.attention" for i in range(2)]
    random = torch.Generator().manual_seed(0)
    rows = {
        f"{name}.v": [sorted(torch.randperm(8, generator=random)[:5].tolist()) for _ in range(4)]
        for name in names
    }
    selection = Selection(rows, within={f"{name}.v": f"{name}.heads" for name in names})
    program, slim, done = repaired("bert", selection, "readers")
    assert [entry.name for entry in done.matrices] == [f"{name}.output.dense.weight" for name in names]
    fresh = family_batches("bert", 2, seed=1)
    assert moved(done.program, program, fresh) < 0.7 * moved(slim, program, fresh)
    assert verify(program, done.program, selection, done.changed).relative <= 1e-5
