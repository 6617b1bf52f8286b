# mypy: disable-error-code="no-any-return"
"""Scores: each against the sum that defines it, worked out by hand; and all of them on the families, in one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fxprune import analyze
from fxprune.analysis import Units
from fxprune.calibration import Calibration, Objective
from fxprune.scores import SCORES, Evidence, obs
from fxprune.scores.base import additive
from fxprune.scores.obs import Reader, elimination_order
from support.models import HUGGING_FACE, captured
from support.scored import (
    BY_DATA,
    Heads,
    Merged,
    Twice,
    TwoLayers,
    check,
    counted_passes,
    everything,
    family_data,
    free,
    gated,
    labelled,
    normal,
    one_batch,
    rated,
    supervised,
    unexplained,
    unit_errors,
    with_unit_zeroed,
)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of meters of each pass over the data."""
    return counted_passes(monkeypatch)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("family", HUGGING_FACE)
def test_every_score_rates_every_axis_in_one_pass(family: str, name: str, passes: list[int]) -> None:
    analysis = analyze(captured(family, dynamic=True))
    asked = everything(analysis)
    found = SCORES[name].rate(Evidence(analysis, family_data(family)), asked)
    assert list(found) == asked
    for units, worth in found.items():
        check(units, worth)
    assert len(passes) == int(SCORES[name].needs_data)


@pytest.mark.parametrize("name", BY_DATA)
@pytest.mark.parametrize(
    ("family", "axis", "unit"),
    [
        ("bert", "encoder.layer.0.ffn", 5),
        ("bert", "encoder.layer.1.attention.self.qk", 3),
        ("bert", "encoder.layer.1.attention.v", 3),
        ("gpt2", "transformer.h.1.attn.heads", 2),
        ("llama", "model.layers.0.self_attn.kv", 0),
        ("llama", "model.layers.1.mlp.ffn", 17),
        ("resnet", "resnet.encoder.stages.1.layers.1.layer.channels", 6),
    ],
)
def test_a_unit_that_nothing_reads_goes_first(family: str, axis: str, unit: int, name: str) -> None:
    program = captured(family, dynamic=True)
    before = analyze(program).axis(axis)
    analysis = analyze(with_unit_zeroed(program, before, unit, before.readers))
    units = Units(analysis.axis(axis))
    worth = SCORES[name].rate(Evidence(analysis, family_data(family)), [units])[units]
    assert int(worth.order[0, 0]) == unit
    assert float(worth.errors[0, 1]) <= 1e-12 < float(worth.errors[0, 2])


def test_a_unit_without_weights_goes_first_by_magnitude() -> None:
    program = free(TwoLayers(3), 4, 6)
    axis = analyze(program).axes[0]
    worth = rated(
        with_unit_zeroed(program, axis, 5, [member.name for member in axis.members]), "magnitude", None
    )
    assert int(worth.order[0, 0]) == 5
    assert float(worth.errors[0, 1]) == 0 < float(worth.errors[0, 2])


def test_magnitude_is_the_squared_norm_of_each_matrix_over_its_mean() -> None:
    model = TwoLayers(3)
    squares = [model.up.weight.square().sum(1), model.down.weight.square().sum(0)]
    wanted = torch.stack([square / square.mean() for square in squares]).sum(0)
    assert torch.allclose(unit_errors(rated(free(model, 4, 6), "magnitude", None))[0].float(), wanted)


def test_of_equal_units_the_last_goes_first() -> None:
    units = Units(analyze(free(TwoLayers(), 4, 6)).axes[0])
    worth = additive(units, torch.tensor([2.0, 1, 2, 1, 2, 0, 2, 1, 2], dtype=torch.float64))
    assert worth.order.tolist() == [[5, 7, 3, 1, 8, 6, 4, 2, 0]]
    assert worth.errors.tolist() == [[0, 0, 1, 2, 3, 5, 7, 9, 11, 13]]
    assert (worth.kept(4), worth.kept(9), worth.kept(0)) == ([0, 2, 4, 6], list(range(9)), [])


@pytest.mark.parametrize("bias", [True, False])
def test_obs_is_least_squares_over_what_is_left(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "_DAMPING", 1e-9)
    model, x = TwoLayers(1, bias), normal(60, 6)
    program = free(model, 4, 6)
    worth = rated(program, "obs", one_batch(program, x))
    with torch.no_grad():
        units, y = model.units(x), model(x)
    alone = [unexplained(units[:, [i for i in range(9) if i != gone]], y, bias) for gone in range(9)]
    order = worth.order[0].tolist()
    assert order[0] == min(range(9), key=lambda unit: alone[unit])
    errors = [unexplained(units[:, sorted(order[count:])], y, bias) for count in range(10)]
    assert worth.errors[0].tolist() == pytest.approx(errors, rel=1e-4, abs=1e-6)


def test_obs_goes_on_greedily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "_DAMPING", 1e-9)
    model, x = TwoLayers(1), normal(60, 6, seed=3)
    program = free(model, 4, 6)
    order = rated(program, "obs", one_batch(program, x)).order[0].tolist()
    with torch.no_grad():
        units, y = model.units(x), model(x)
    left = list(range(9))
    for gone in order:
        without = {u: unexplained(units[:, [i for i in left if i != u]], y, bias=True) for u in left}
        assert without[gone] <= min(without.values()) * (1 + 1e-6)
        left.remove(gone)


def test_obs_with_kernels_removes_all_columns_of_a_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "_DAMPING", 1e-9)
    model, x = TwoLayers(1, kernel=3), normal(8, 6, 20)
    program = free(model, 4, 6, 20)
    worth = rated(program, "obs", one_batch(program, x))
    with torch.no_grad():
        units, y = model.units(x), model(x).flatten()[:, None]
    patches = units.unfold(2, 3, 1).transpose(1, 2).flatten(0, 1)  # rows × channels × kernel
    order = worth.order[0].tolist()
    alone = [
        unexplained(patches[:, [i for i in range(9) if i != j]].flatten(1), y, bias=True) for j in range(9)
    ]
    assert order[0] == min(range(9), key=lambda unit: alone[unit])
    errors = [unexplained(patches[:, sorted(order[count:])].flatten(1), y, bias=True) for count in range(10)]
    assert worth.errors[0].tolist() == pytest.approx(errors, rel=1e-4, abs=1e-6)


def test_obs_weighs_outputs_by_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "_DAMPING", 1e-9)
    model, x = TwoLayers(3), normal(60, 6)
    program = free(model, 4, 6)
    worth = rated(program, "obs", one_batch(program, x), draws=64)
    with torch.no_grad():
        units, y = model.units(x), model(x)
    alone = [unexplained(units[:, [i for i in range(9) if i != gone]], y, bias=True) for gone in range(9)]
    assert int(worth.order[0, 0]) == min(range(9), key=lambda unit: alone[unit])
    assert float(worth.errors[0, 1]) == pytest.approx(min(alone), rel=0.05)


def test_obs_adds_up_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "_DAMPING", 1e-9)
    model, x = Twice(), normal(60, 6)
    program = free(model, 4, 6)
    worth = rated(program, "obs", one_batch(program, x))
    with torch.no_grad():
        units, ys = model.units(x), model(x)

    def missed(left: Sequence[int]) -> float:
        return sum(unexplained(units[:, sorted(left)], y, bias=True) for y in ys) / 2

    order = worth.order[0].tolist()
    for count, gone in enumerate(order):
        without = {unit: missed([i for i in order[count:] if i != unit]) for unit in order[count:]}
        assert without[gone] <= min(without.values()) * (1 + 1e-6)
    errors = [missed(order[count:]) for count in range(10)]
    assert worth.errors[0].tolist() == pytest.approx(errors, rel=1e-4, abs=1e-6)


def test_batches_count_by_their_rows() -> None:
    """A batch's squared change stands over its own squares, and counts by its share of the rows."""
    model, parts = TwoLayers(1), (normal(50, 6), 3 * normal(10, 6, seed=1))
    program = free(model, 4, 6)
    data = Calibration(tuple({"x": part} for part in parts))
    with torch.no_grad():
        squares = [float(model(part).square().mean()) for part in parts]
        everything = torch.cat(parts)
        units, y = model.units(everything), model(everything)
    curvature = sum(len(part) / 60 / square for part, square in zip(parts, squares, strict=True))
    missed = unexplained(units[:, :0], y, bias=True) * float(y.square().mean())
    assert float(rated(program, "obs", data).errors[0, -1]) == pytest.approx(curvature * missed, rel=0.05)


def test_removals_cost_what_the_whole_costs() -> None:
    """Four groups of five units with two columns each; every step removes one of each group at once."""
    spread, weight = normal(40, 60, seed=1).double(), normal(3, 40, seed=2).double()
    inverse = torch.linalg.inv(spread @ spread.T)
    columns = torch.randperm(40, generator=torch.Generator().manual_seed(3)).reshape(20, 2)
    gone: list[list[int]] = []

    class Watched(Reader):
        def remove(self, units: Tensor) -> float:
            gone.append(units.tolist())
            return super().remove(units)

    order, errors = elimination_order([Watched(inverse, weight, columns)], 4, 5)
    assert [[unit // 5 for unit in step] for step in gone] == [[0, 1, 2, 3]] * 5
    assert torch.tensor(gone).T.remainder(5).tolist() == order.tolist()
    for count in range(1, 6):
        at = columns[torch.tensor(gone[:count]).flatten()].flatten()
        part = weight[:, at]
        cost = float((torch.linalg.solve(inverse[at][:, at], part.T) * part.T).sum())
        assert float(errors[:, count].sum()) == pytest.approx(cost, rel=1e-8)


def test_large_axes_are_emptied_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "STEPS", 3)
    weight = torch.arange(1.0, 11.0, dtype=torch.float64)[None]
    steps: list[int] = []

    class Watched(Reader):
        def remove(self, units: Tensor) -> float:
            steps.append(len(units))
            return super().remove(units)

    only = Watched(torch.eye(10, dtype=torch.float64), weight, torch.arange(10)[:, None])
    order, errors = elimination_order([only], 1, 10)
    assert steps == [3, 3, 3, 1]
    assert order.tolist() == [list(range(10))]
    assert errors[0].tolist() == pytest.approx([sum(i * i for i in range(1, k + 1)) for k in range(11)])


@pytest.mark.parametrize(("name", "power"), [("fisher", 2), ("taylor", 1)])
def test_gradients_are_those_of_gates(name: str, power: int) -> None:
    model, data = Heads(), labelled((4, 7, 4), (2, 7, 4))
    analysis = analyze(free(model, 3, 7, 4))
    slopes, shares = gated(model, data)
    heads, dims = analysis.axis("heads"), analysis.axis("v")
    rate = SCORES[name].rate(
        Evidence(analysis, data, Objective(loss=supervised)),
        [Units(heads), Units(dims), Units(dims, heads)],
    )
    for units, sums in zip(rate, [(1,), (0,), ()], strict=True):
        each = [slope.sum(sums) if sums else slope for slope in slopes]
        parts = [s.abs() ** power * share ** (power / 2) for s, share in zip(each, shares, strict=True)]
        wanted = torch.stack(parts).sum(0)
        assert torch.allclose(unit_errors(rate[units]).float(), wanted.reshape(units.groups, -1), rtol=1e-4)


@pytest.mark.parametrize("distance", ["square", "divergence"])
def test_fisher_is_the_curvature_of_the_distance(distance: str) -> None:
    """The logits are linear in each gate, so the curvature is known in closed form."""
    model, x = TwoLayers(4, bend=False), normal(16, 6) * 2
    program = free(model, 4, 6)
    worth = rated(program, "fisher", one_batch(program, x), distance=distance, draws=1500)
    with torch.no_grad():
        moved = model.units(x)[:, :, None] * model.down.weight.T  # rows × units × logits
        logits = model(x)
    p = logits.softmax(-1)[:, None]
    spread = (p * moved.square()).sum(-1) - (p * moved).sum(-1).square()
    known = {"square": moved.square().sum((0, 2)) / logits.square().sum(), "divergence": spread.mean(0)}
    assert unit_errors(worth)[0].tolist() == pytest.approx(known[distance].tolist(), rel=0.2)


def test_activation_is_the_norm_of_units_times_that_of_their_weights() -> None:
    model, data = TwoLayers(3), Calibration(({"x": normal(7, 6)}, {"x": normal(5, 6, seed=1)}))
    with torch.no_grad():
        units = torch.cat([model.units(batch["x"]) for batch in data.batches])
        wanted = units.norm(dim=0) * model.down.weight.norm(dim=0)
    assert torch.allclose(
        unit_errors(rated(free(model, 4, 6), "activation", data))[0].float(), wanted, rtol=1e-4
    )


def test_a_batch_of_another_size_may_be_merged_with_heads() -> None:
    model, x = Merged(), normal(5, 7, 4)
    analysis = analyze(free(model, 3, 7, 4))
    units = Units(analysis.axis("qk"), analysis.axis("heads"))
    found = SCORES["activation"].rate(Evidence(analysis, Calibration(({"x": x},))), [units])[units]
    with torch.no_grad():
        q, k = (layer(x).unflatten(-1, (2, 3)).flatten(0, 1).norm(dim=0) for layer in (model.q, model.k))
    assert torch.allclose(unit_errors(found).float(), q * k, rtol=1e-4)
