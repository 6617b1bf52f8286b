# mypy: disable-error-code="no-any-return"
"""Weight re-fitting: families are repaired in every way, with values in memory or on disk, and only weights change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, Selection, apply, capture, verify
from fxprune.analysis.linear_maps import LinearMap
from fxprune.calibration import Calibration
from fxprune.calibration.least_squares import InputSums
from fxprune.calibration.lockstep import ActivationStore, Runner
from fxprune.calibration.repair import HELD_BACK, REPAIRS, repair
from fxprune.errors import UsageError
from fxprune.passes import Heads
from support.models import HUGGING_FACE, captured
from support.repaired import (
    WIDTH,
    Counting,
    Parallel,
    Placewise,
    Stream,
    calibration,
    differing,
    error,
    family_batches,
    free,
    moved,
    normal,
    quarter_less,
    repaired,
    without_last,
)


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
    runners: list[Runner] = []
    begin = Runner.__init__

    def noted(runner: Runner, program: Program, *rest: Any) -> None:
        begin(runner, program, *rest)
        runners.append(runner)

    monkeypatch.setattr(Runner, "__init__", noted)
    program = free(Parallel(), 4, 6)
    selection = without_last(program)
    repair(program, apply(program, selection), selection, calibration(program, 2, 8, 6))
    assert len(runners) == 4
    for runner in runners:
        assert [node.name for node in runner.env if not runner.readers[node]] == []
        assert len(runner.env) <= 2  # the input and the result of the last matrix


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


@pytest.mark.parametrize("how", REPAIRS)
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_families_are_repaired_in_every_way(name: str, how: str) -> None:
    selection = quarter_less(captured(name, dynamic=True))
    program, slim, done = repaired(name, selection, how)
    assert str(done.program.graph) == str(slim.graph)
    assert list(done.changed) == [n for entry in done.matrices for n in entry.tensors]
    assert sorted(done.changed) == sorted(differing(slim, done.program))
    assert bool(done.changed) == (how != "none" and (name, how) != ("llama", "mean"))  # Llama has no biases
    assert all(entry.after <= entry.before for entry in done.matrices)
    assert verify(program, done.program, selection, done.changed).relative <= 1e-5
    fresh = family_batches(name, 2, seed=1)
    assert moved(done.program, program, fresh) <= 1.05 * moved(slim, program, fresh)


CONVOLUTIONS: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(3, 12, 3), nn.Conv1d(12, 4, 3, stride=2, padding=1, dilation=2), (4, 3, 12)),
    "conv3d": (
        nn.Conv3d(3, 12, (1, 2, 2)),
        nn.Conv3d(12, 4, (2, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2)),
        (4, 3, 4, 6, 5),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_refitted_by_least_squares(name: str) -> None:
    """At the minimum of ‖error‖² + ridge · ‖change‖², the slope of the error is along the change: autograd knows no patches."""
    torch.manual_seed(0)
    first, second, sizes = CONVOLUTIONS[name]
    program = free(nn.Sequential(first, nn.ReLU(), second), *sizes)
    selection, data = without_last(program), calibration(program, 16, *sizes)
    slim = apply(program, selection)
    made = repair(program, slim, selection, data, "readers")
    (fit,) = made.matrices
    assert (fit.name, fit.how[:5], fit.after < 0.9 * fit.before) == ("2.weight", "ridge", True)
    rows, _ = data.split(HELD_BACK, slim)
    slopes = slope(made.program, program, [next(iter(batch.values())) for batch in rows.batches])
    change = (slim.tensors()["2.weight"] - made.program.tensors()["2.weight"]).detach().flatten()
    cosine = torch.cosine_similarity(slopes["2.weight"].flatten(), change, 0)
    assert float(cosine) == pytest.approx(1, abs=1e-4)
    assert float(slopes["2.bias"].norm()) < 1e-3 * float(slopes["2.weight"].norm())


def slope(program: Program, original: Program, batches: list[Tensor]) -> dict[str, Tensor]:
    """The gradient of the squared error."""
    module, error = program.module(), torch.zeros(())
    for batch in batches:
        error = error + (module(batch) - original(batch).detach()).square().sum()
    error.backward()
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


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


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_what_waits_on_disk_comes_back_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, bit by bit, whether all values wait in memory or none; and no file is left."""
    program = captured(name, dynamic=True)
    selection = Heads(ratio=0.5).run(program).selection
    slim = apply(program, selection)
    data = Calibration(tuple({"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens(6)))
    monkeypatch.setattr("fxprune.calibration.memory.LIVE", 1e9)
    inside = repair(program, slim, selection, data)
    parked: list[tuple[int, int]] = []
    leave = ActivationStore.__exit__

    def noted(parking: ActivationStore, *rest: Any) -> None:
        folder = Path(parking._folder.name)
        parked.append((len(parking.inside), len(parking.outside)))
        leave(parking, *rest)
        assert not folder.exists()

    monkeypatch.setattr(ActivationStore, "__exit__", noted)
    monkeypatch.setattr("fxprune.calibration.memory.LIVE", 0)
    outside = repair(program, slim, selection, data)
    [(kept, written)] = parked
    assert written >= 6
    assert kept + written == 12
    assert inside.changed == outside.changed
    assert all(
        torch.equal(a, b)
        for a, b in zip(inside.program.tensors().values(), outside.program.tensors().values(), strict=True)
    )


def tokens(batches: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randint(0, 99, (4, 13), generator=random) for _ in range(batches)]


def test_rows_beyond_the_span_of_those_that_were_fitted_are_a_remark() -> None:
    """Five rows of twelve inputs are met by many matrices; the sixth is met by none of them."""
    program = free(Stream(), 4, 6)
    selection = without_last(program, 6)
    slim = apply(program, selection)
    few = repair(program, slim, selection, calibration(program, 6, 2, 6))
    (said,) = few.remarks()
    worst = max(few.matrices, key=lambda each: each.excess)
    assert worst.fitted is not None
    assert "data too few or too narrow" in said
    assert f"most at {worst.name} ({worst.after:.2g} against {worst.fitted:.2g})" in said
    assert worst.after > 4 * worst.fitted
    assert repair(program, slim, selection, calibration(program, 16, 64, 6)).remarks() == ()


def test_what_several_matrices_read_is_summed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values of one layer; the fits are those of sums of their own."""
    program = captured("llama", dynamic=True)
    data = Calibration(tuple(family_batches("llama", 6, 0)))
    selection = quarter_less(program)
    slim = apply(program, selection)
    taken: list[int] = []
    honest = InputSums.take

    def counted(self: InputSums, wide: Tensor) -> None:
        taken.append(wide.shape[1])
        honest(self, wide)

    monkeypatch.setattr(InputSums, "take", counted)
    together = repair(program, slim, selection, data)
    shared = len(taken)
    monkeypatch.setattr(LinearMap, "reads_as", lambda self, other: False)
    apart = repair(program, slim, selection, data)
    assert shared < 0.7 * (len(taken) - shared)
    for one, other in zip(together.matrices, apart.matrices, strict=True):
        assert (one.name, one.how) == (other.name, other.how)
        assert torch.equal(together.program.tensors()[one.name], apart.program.tensors()[one.name])
