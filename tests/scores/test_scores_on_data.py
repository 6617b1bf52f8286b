# mypy: disable-error-code="no-any-return"
"""Scores on data: units along any dimensions, passes within a memory limit, losses, graphs that write, and errors of outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from fxprune import analyze
from fxprune.analysis import Units
from fxprune.calibration import Calibration, Objective
from fxprune.calibration.run import pack_by_bytes
from fxprune.dims import atom
from fxprune.errors import FxpruneError, UsageError
from fxprune.scores import SCORES, Evidence, obs
from fxprune.scores.obs import Reader
from support.models import captured
from support.scored import (
    BY_DATA,
    Chosen,
    Complex,
    Counting,
    Early,
    Heads,
    TwoLayers,
    Written,
    check,
    counted_passes,
    everything,
    family_data,
    free,
    labelled,
    normal,
    one_batch,
    rated,
    supervised,
    unexplained,
    unit_errors,
)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of meters of each pass over the data."""
    return counted_passes(monkeypatch)


def test_units_may_lie_along_two_dimensions_in_any_order() -> None:
    analysis = analyze(free(Heads(), 3, 7, 4))
    heads, dims = analysis.axis("heads"), analysis.axis("v")
    units, value = Units(dims, heads), normal(3, 4, 2)  # dims × something × heads
    found = units.total(value, [dims.leaf, atom(4), heads.leaf])
    assert found is not None
    assert torch.allclose(found.float(), value.sum(1).T.flatten())
    assert units.total(value, [dims.leaf, atom(4), atom(2)]) is None
    assert units.total(value, [atom(3), atom(4), heads.leaf]) is None


def test_complex_weights_count_with_both_parts() -> None:
    model, data = Complex(), labelled((8, 6))
    gate, batch = torch.ones(9, requires_grad=True), data.batches[0]
    (slope,) = torch.autograd.grad(supervised((model(batch["x"], gate),), batch), [gate])
    program = free(model, 4, 6)
    both = 2 * slope.abs()  # it is not known which zeros silence the units, so both matrices are gated
    assert torch.allclose(
        unit_errors(rated(program, "taylor", data, loss=supervised))[0].float(), both, rtol=1e-4
    )
    parts = [value.abs().square().sum(dim) for value, dim in ((model.up, 0), (model.down, 1))]
    wanted = torch.stack([part / part.mean() for part in parts]).sum(0)
    assert torch.allclose(unit_errors(rated(program, "magnitude", None))[0].float(), wanted)


def test_what_no_matrix_reads_gets_its_fisher_from_obs() -> None:
    analysis = analyze(captured("bert", dynamic=True))
    evidence = Evidence(analysis, family_data("bert"))
    axes = [axis for axis in analysis.axes if axis.role in ("qk", "ffn")]
    asked = [Units(axis) for axis in axes]
    surgeon, gates = (SCORES[name].rate(evidence, asked) for name in ("obs", "fisher"))
    same = [torch.equal(surgeon[units].errors, gates[units].errors) for units in asked]
    assert same == [axis.role == "qk" for axis in axes]
    assert len(set(same)) == 2


@pytest.mark.parametrize("name", SCORES)
def test_each_head_has_an_order_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = analyze(captured("bert", dynamic=True))
    heads, dims = (analysis.axis(f"encoder.layer.0.attention.{role}") for role in ("heads", "v"))
    steps: list[list[int]] = []
    remove = Reader.remove

    def watched(reader: Reader, units: Tensor) -> float:
        steps.append((units // 8).tolist())
        return remove(reader, units)

    monkeypatch.setattr(Reader, "remove", watched)
    units = Units(dims, heads)
    worth = SCORES[name].rate(Evidence(analysis, family_data("bert")), [units])[units]
    check(units, worth)
    assert worth.order.shape == (4, 8)
    assert len({tuple(row) for row in worth.order.tolist()}) > 1
    assert [len(row) for row in worth.rows(3)] == [3] * 4
    assert worth.rows(3) == [sorted(row[5:]) for row in worth.order.tolist()]
    assert steps == ([[0, 1, 2, 3]] * 8 if name == "obs" else [])


def test_chance_follows_the_seed_and_the_name() -> None:
    analysis = analyze(captured("bert", dynamic=True))
    asked = [Units(axis) for axis in analysis.axes if axis.role == "ffn"]

    def drawn(seed: int) -> list[list[int]]:
        found = SCORES["random"].rate(Evidence(analysis, None, Objective(seed=seed)), asked)
        return [found[units].order[0].tolist() for units in asked]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(0)[0] != drawn(0)[1]


@pytest.mark.parametrize("name", SCORES)
def test_scores_say_when_they_need_data(name: str) -> None:
    program = free(TwoLayers(), 4, 6)
    if not SCORES[name].needs_data:
        assert rated(program, name, None).order.shape == (1, 9)
        return
    with pytest.raises(
        UsageError, match=r"this score needs calibration data: give --calibration FILE, or data=… in Python"
    ):
        rated(program, name, None)


def test_little_memory_means_more_passes_and_the_same_answer(passes: list[int]) -> None:
    analysis = analyze(captured("bert", dynamic=True))
    asked, data = everything(analysis), family_data("bert")
    whole = SCORES["obs"].rate(Evidence(analysis, data), asked)
    assert passes == [2]  # the moments, and the gates of the axes that no matrix reads
    parts = SCORES["obs"].rate(Evidence(analysis, data, memory=1), asked)
    read = [units for units in asked if units.axis.role != "qk"]
    assert passes == [2, 2, *[1] * (len(read) - 1)]
    for units in asked:
        assert torch.equal(parts[units].order, whole[units].order)
        assert torch.allclose(parts[units].errors, whole[units].errors, rtol=1e-9)


def test_passes_agree_where_outputs_depend_on_a_part() -> None:
    analysis = analyze(free(Early(), 4, 6))
    asked, data = everything(analysis), Calibration(({"x": normal(20, 6)},))
    whole, parts = (SCORES["obs"].rate(Evidence(analysis, data, memory=size), asked) for size in (0, 1))
    assert len(asked) > 1
    for units in asked:
        assert torch.allclose(parts[units].errors, whole[units].errors, rtol=1e-9)


def test_chunks_keep_order_and_room() -> None:
    assert pack_by_bytes([3, 1, 2, 9, 1, 1], lambda size: size, 4) == [[3, 1], [2], [9], [1, 1]]
    assert pack_by_bytes([], lambda size: size, 4) == []


@pytest.mark.parametrize("name", ["taylor", "fisher", "obs"])
def test_a_loss_decides_what_matters(name: str) -> None:
    """Only the first output counts, and only one unit feeds it."""
    model = TwoLayers(3)
    with torch.no_grad():
        model.down.weight[0] = F.one_hot(torch.tensor(4), 9)

    def first(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        return (outputs[0][:, 0] - batch["wanted"]).square().mean()

    x = normal(50, 6)
    data = Calibration(({"x": x, "wanted": normal(50, seed=1)},))
    worth = rated(free(model, 4, 6), name, data, loss=first)
    assert int(worth.order[0, -1]) == 4
    assert float(worth.errors[0, -2]) <= 1e-12 < float(worth.errors[0, -1])


@pytest.mark.parametrize("name", ["taylor", "fisher", "obs"])
def test_outputs_without_gradients_are_a_sentence(name: str) -> None:
    program = free(Chosen(beside=False), 4, 6)
    said = r"no output depends on the weights through differentiable operators: use a score without gradients \(activation\)"
    with pytest.raises(FxpruneError, match=said):
        rated(program, name, one_batch(program, normal(8, 6)))


@pytest.mark.parametrize("name", ["taylor", "fisher", "obs"])
def test_units_that_no_gradient_reaches_are_worth_nothing(name: str) -> None:
    analysis = analyze(free(Chosen(beside=True), 4, 6))
    asked = [Units(analysis.axis(name)) for name in ("ffn", "beside.ffn")]
    found = SCORES[name].rate(Evidence(analysis, Calibration(({"x": normal(8, 6)},))), asked)
    assert [float(found[units].errors.max()) > 0 for units in asked] == [False, True]


@pytest.mark.parametrize("name", BY_DATA)
def test_what_a_graph_writes_into_its_buffers_stays_out_of_the_program(name: str) -> None:
    program = free(Counting(), 4, 6)
    once = rated(program, name, one_batch(program, normal(8, 6)))
    assert torch.equal(rated(program, name, one_batch(program, normal(8, 6))).errors, once.errors)
    assert float(program.tensors()["runs"]) == 0


@pytest.mark.parametrize("name", ["activation", "obs"])
def test_values_are_seen_as_they_were_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "_DAMPING", 1e-9)
    model, x = Written(), normal(60, 6)
    analysis = analyze(free(model, 4, 6))
    asked = [
        next(Units(a) for a in analysis.axes if f"{name}.weight" in a.readers) for name in ("down", "out")
    ]
    found = SCORES[name].rate(Evidence(analysis, Calibration(({"x": x},))), asked)
    with torch.no_grad():
        units = model.units(x)
        read = model.down(units) * torch.tensor([0.5] * 2 + [1.0] * 7)
        y = model.out(read)
    for each, value, weight in zip(asked, (units, read), (model.down.weight, model.out.weight), strict=True):
        own = list(range(9 - each.axis.size, 9))
        if name == "activation":
            wanted = value.norm(dim=0) * weight.norm(dim=0)
            assert torch.allclose(unit_errors(found[each])[0].float(), wanted[own])
        else:
            alone = [unexplained(value[:, [i for i in range(9) if i != j]], y, bias=True) for j in own]
            assert float(found[each].errors[0, 1]) == pytest.approx(min(alone) / 2, rel=1e-3)


def test_a_graph_that_overwrites_what_gradients_need_is_a_sentence() -> None:
    class Lost(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            units = self.units(x)
            flat = units.view(-1, 9)
            y = self.down(flat)
            flat.mul_(0.0)
            return y + units.sum()

    program = free(Lost(), 4, 6)
    with pytest.raises(FxpruneError, match=r"the graph can't be differentiated: .* inplace operation"):
        rated(program, "taylor", one_batch(program, normal(8, 6)))


def test_features_that_never_change_cost_nothing() -> None:
    """What they bring goes into the bias; the moments have no spread at all, up to rounding."""
    program = free(TwoLayers(1), 4, 6)
    for seed in range(20):
        worth = rated(program, "obs", one_batch(program, normal(1, 6, seed=seed).expand(31, 6)))
        assert float(worth.errors.max()) <= 1e-6


@pytest.mark.parametrize(
    ("distance", "wanted"),
    [("square", 2 / 30), ("divergence", 2 * (0.5 * (torch.tensor(0.75).log() * -1).item()))],
)
def test_gaps_are_in_the_currency_of_curvature(distance: str, wanted: float) -> None:
    if distance == "square":
        value, other = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[2.0, 2.0], [3.0, 3.0]])
    else:
        value, other = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 3.0]]).log()
    assert Objective(distance).gap((value, None), (other, None), {}) == pytest.approx(wanted, rel=1e-6)


def test_a_divergence_is_never_negative_and_infinite_where_an_answer_became_impossible() -> None:
    value = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)) * 20
    objective = Objective("divergence")
    assert 0 <= objective.gap((value,), (value.clone(),), {}) <= 1e-5
    assert objective.gap((value,), (value.index_fill(1, torch.tensor([3]), -torch.inf),), {}) == torch.inf


def test_the_gap_of_a_loss_is_twice_its_rise() -> None:
    objective = Objective(loss=lambda outputs, batch: outputs[0].sum() * batch["scale"])
    one, other, batch = (torch.ones(3),), (torch.full((3,), 3.0),), {"scale": torch.tensor(2.0)}
    assert objective.gap(one, other, batch) == 24
    assert objective.gap(other, one, batch) == 0


@pytest.mark.parametrize("distance", ["square", "divergence"])
def test_curvature_times_a_small_change_is_the_gap(distance: str) -> None:
    """Half a per cent of one unit goes: the gap is the square of that times its Fisher."""
    model, x = TwoLayers(4, bend=False), normal(16, 6)
    program = free(model, 4, 6)
    objective = Objective(distance, draws=1500)
    worth = unit_errors(rated(program, "fisher", one_batch(program, x), distance=distance, draws=1500))[0]
    with torch.no_grad():
        less = torch.ones(9).index_fill(0, torch.tensor(2), 1 - 5e-3)
        gap = objective.gap((model(x),), (model.down(model.units(x) * less),), {})
    assert gap / 5e-3**2 == pytest.approx(float(worth[2]), rel=0.2)
