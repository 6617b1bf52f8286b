# mypy: disable-error-code="no-any-return"
# A module called is Any to the type checker.
"""Scores: each against the sum that defines it, worked out by hand; and all of them on the families, in one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from fxprune import Program, analyze, capture, elimination, score
from fxprune.analysis import Analysis, Axis
from fxprune.calibration import Calibration
from fxprune.elimination import Reader, eliminate
from fxprune.errors import FxpruneError, UsageError
from fxprune.objective import Objective
from fxprune.program import attribute, copy_graph, rebuild
from fxprune.score import SCORES, Evidence, Worth, additive
from fxprune.sites import sites
from fxprune.stream import chunks, stream
from fxprune.units import Units
from models import HUGGING_FACE, captured

FREE = torch.export.Dim.AUTO
BY_DATA = [name for name, row in SCORES.items() if row.needs_data]


class Bend(nn.Module):
    """Nine units between two layers; the second may have no bias, and both may be convolutions."""

    def __init__(self, outputs: int = 1, bias: bool = True, kernel: int = 0, bend: bool = True) -> None:
        super().__init__()
        torch.manual_seed(outputs)
        self.bend = bend
        wide = nn.Conv1d(9, outputs, kernel, bias=bias) if kernel else nn.Linear(9, outputs, bias=bias)
        self.up: nn.Linear | nn.Conv1d = nn.Conv1d(6, 9, 1) if kernel else nn.Linear(6, 9)
        self.down: nn.Linear | nn.Conv1d = wide

    def units(self, x: Tensor) -> Tensor:
        return self.up(x).relu() if self.bend else self.up(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.units(x))


class Heads(nn.Module):
    """Attention of two heads with three dims each; a gate on what is read of every head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(*size) for size in ((4, 6), (4, 6), (4, 6), (6, 5)))
        self.gate: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.o((read if self.gate is None else read * self.gate).flatten(2))


def free(model: nn.Module, *sizes: int) -> Program:
    """Captured with a free batch."""
    return capture(model.eval(), (torch.randn(sizes),), dynamic=({0: FREE},))


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def one_batch(program: Program, value: Tensor) -> Calibration:
    return Calibration(({program.input_names()[0]: value},))


def rated(program: Program, name: str, data: Calibration | None, **options: Any) -> Worth:
    """What a score says of the only axis of a program."""
    analysis = analyze(program)
    units = Units(analysis.axes[0])
    assert len(analysis.axes) == 1
    return SCORES[name].rate(Evidence(analysis, data, Objective(**options)), [units])[units]


def worths(worth: Worth) -> Tensor:
    """What each unit is worth by itself, [groups, size]."""
    return torch.empty_like(worth.errors[:, 1:]).scatter_(1, worth.order, worth.errors.diff(dim=1))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of meters of each pass over the data."""
    counted: list[int] = []

    def counting(program: Program, data: Calibration, meters: Sequence[Any], objective: Objective) -> None:
        counted.append(len(meters))
        stream(program, data, meters, objective)

    monkeypatch.setattr(score, "stream", counting)
    return counted


def family_data(name: str) -> Calibration:
    """Two batches of sizes that are not those of the example inputs."""
    random = torch.Generator().manual_seed(0)
    if name == "resnet":
        return Calibration(
            tuple({"pixel_values": torch.randn(rows, 2, 32, 32, generator=random)} for rows in (2, 4))
        )
    ids = [torch.randint(0, 99, size, generator=random) for size in ((4, 9), (2, 7))]
    return Calibration(tuple({"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids))


def everything(analysis: Analysis) -> list[Units]:
    """All axes, and those that may differ for each head."""
    within = [Units(axis, site.main) for site in sites(analysis) for axis in site.inner]
    return [*map(Units, analysis.axes), *within]


def check(units: Units, worth: Worth) -> None:
    size = units.axis.size
    assert worth.order.shape == (units.groups, size)
    assert worth.order.dtype == torch.int64
    assert torch.equal(worth.order.sort(1).values, torch.arange(size).expand(units.groups, size))
    assert worth.errors.shape == (units.groups, size + 1)
    assert worth.errors.dtype == torch.float64
    assert bool((worth.errors[:, 0] == 0).all())
    assert bool(worth.errors.isfinite().all())
    assert bool((worth.errors.diff(dim=1) >= 0).all())
    assert float(worth.errors[:, -1].sum()) > 0


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


def silent(program: Program, axis: Axis, unit: int, names: Sequence[str]) -> Program:
    """The program with one unit's part of these parameters at zero."""
    made: dict[str, Tensor] = {}
    for member in axis.members:
        if member.name in names:
            whole = made.get(member.name, attribute(program.graph, member.name).detach())
            zeros = whole.index_fill(member.dim, torch.tensor(member.indices(unit)), 0.0)
            made[member.name] = nn.Parameter(zeros)
    return rebuild(program, copy_graph(program), made)


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
    analysis = analyze(silent(program, before, unit, before.readers))
    units = Units(analysis.axis(axis))
    worth = SCORES[name].rate(Evidence(analysis, family_data(family)), [units])[units]
    assert int(worth.order[0, 0]) == unit
    assert float(worth.errors[0, 1]) <= 1e-12 < float(worth.errors[0, 2])


def test_a_unit_without_weights_goes_first_by_magnitude() -> None:
    program = free(Bend(3), 4, 6)
    axis = analyze(program).axes[0]
    worth = rated(silent(program, axis, 5, [member.name for member in axis.members]), "magnitude", None)
    assert int(worth.order[0, 0]) == 5
    assert float(worth.errors[0, 1]) == 0 < float(worth.errors[0, 2])


def test_magnitude_is_the_squared_norm_of_each_matrix_over_its_mean() -> None:
    model = Bend(3)
    squares = [model.up.weight.square().sum(1), model.down.weight.square().sum(0)]
    wanted = torch.stack([square / square.mean() for square in squares]).sum(0)
    assert torch.allclose(worths(rated(free(model, 4, 6), "magnitude", None))[0].float(), wanted)


def test_of_equal_units_the_last_goes_first() -> None:
    units = Units(analyze(free(Bend(), 4, 6)).axes[0])
    worth = additive(units, torch.tensor([2.0, 1, 2, 1, 2, 0, 2, 1, 2], dtype=torch.float64))
    assert worth.order.tolist() == [[5, 7, 3, 1, 8, 6, 4, 2, 0]]
    assert worth.errors.tolist() == [[0, 0, 1, 2, 3, 5, 7, 9, 11, 13]]
    assert (worth.kept(4), worth.kept(9), worth.kept(0)) == ([0, 2, 4, 6], list(range(9)), [])


def unexplained(known: Tensor, wanted: Tensor, bias: bool) -> float:
    """The share of a target's squares that no weights on known columns explain."""
    columns = torch.cat([known, torch.ones(len(known), 1)], 1) if bias else known
    columns, target = columns.double(), wanted.double()
    fitted = torch.linalg.lstsq(columns, target).solution if columns.shape[1] else None
    left = target if fitted is None else target - columns @ fitted
    return float(left.square().sum() / target.square().sum())


@pytest.mark.parametrize("bias", [True, False])
def test_obs_is_least_squares_over_what_is_left(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "DAMPING", 1e-9)
    model, x = Bend(1, bias), normal(60, 6)
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
    monkeypatch.setattr(elimination, "DAMPING", 1e-9)
    model, x = Bend(1), normal(60, 6, seed=3)
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
    monkeypatch.setattr(elimination, "DAMPING", 1e-9)
    model, x = Bend(1, kernel=3), normal(8, 6, 20)
    program = free(model, 4, 6, 20)
    worth = rated(program, "obs", one_batch(program, x))
    with torch.no_grad():
        units, y = model.units(x), model(x).flatten()[:, None]
    patches = units.unfold(2, 3, 1).transpose(1, 2).flatten(0, 1)  # rows × channels × kernel
    order = worth.order[0].tolist()
    errors = [unexplained(patches[:, sorted(order[count:])].flatten(1), y, bias=True) for count in range(10)]
    assert worth.errors[0].tolist() == pytest.approx(errors, rel=1e-4, abs=1e-6)


def test_obs_weighs_outputs_by_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "DAMPING", 1e-9)
    model, x = Bend(3), normal(60, 6)
    program = free(model, 4, 6)
    worth = rated(program, "obs", one_batch(program, x), draws=64)
    with torch.no_grad():
        units, y = model.units(x), model(x)
    alone = [unexplained(units[:, [i for i in range(9) if i != gone]], y, bias=True) for gone in range(9)]
    assert int(worth.order[0, 0]) == min(range(9), key=lambda unit: alone[unit])
    assert float(worth.errors[0, 1]) == pytest.approx(min(alone), rel=0.05)


class Twice(Bend):
    """Two outputs read the units."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Any:
        return self.down(self.units(x)), self.other(self.units(x))


def test_obs_adds_up_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "DAMPING", 1e-9)
    model, x = Twice(), normal(60, 6)
    program = free(model, 4, 6)
    worth = rated(program, "obs", one_batch(program, x))
    with torch.no_grad():
        units, ys = model.units(x), model(x)
    order = worth.order[0].tolist()
    errors = [
        sum(unexplained(units[:, sorted(order[count:])], y, bias=True) for y in ys) / 2 for count in range(10)
    ]
    assert worth.errors[0].tolist() == pytest.approx(errors, rel=1e-4, abs=1e-6)


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

    order, errors = eliminate([Watched(inverse, weight, columns)], 4, 5)
    assert [[unit // 5 for unit in step] for step in gone] == [[0, 1, 2, 3]] * 5
    assert torch.tensor(gone).T.remainder(5).tolist() == order.tolist()
    for count in range(1, 6):
        at = columns[torch.tensor(gone[:count]).flatten()].flatten()
        part = weight[:, at]
        cost = float((torch.linalg.solve(inverse[at][:, at], part.T) * part.T).sum())
        assert float(errors[:, count].sum()) == pytest.approx(cost, rel=1e-8)


def test_large_axes_are_emptied_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "STEPS", 3)
    weight = torch.arange(1.0, 11.0, dtype=torch.float64)[None]
    order, errors = eliminate(
        [Reader(torch.eye(10, dtype=torch.float64), weight, torch.arange(10)[:, None])], 1, 10
    )
    assert order.tolist() == [list(range(10))]
    assert errors[0].tolist() == pytest.approx([sum(i * i for i in range(1, k + 1)) for k in range(11)])


def supervised(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(outputs[0].flatten(0, -2), batch["labels"].flatten())


def labelled(*sizes: tuple[int, ...], seed: int = 0) -> Calibration:
    """Batches of inputs of these sizes, with labels below five."""
    random = torch.Generator().manual_seed(seed)
    return Calibration(
        tuple(
            {
                "x": torch.randn(size, generator=random),
                "labels": torch.randint(0, 5, size[:-1], generator=random),
            }
            for size in sizes
        )
    )


def gated(model: Heads, data: Calibration) -> tuple[list[Tensor], list[float]]:
    """The gradients of a supervised loss by gates that stand in the model, and each batch's share of the rows."""
    slopes: list[Tensor] = []
    for batch in data.batches:
        model.gate = torch.ones(2, 3, requires_grad=True)
        slopes += torch.autograd.grad(supervised((model(batch["x"]),), batch), [model.gate])
    model.gate = None
    return slopes, [len(batch["x"]) / data.rows for batch in data.batches]


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
        assert torch.allclose(worths(rate[units]).float(), wanted.reshape(units.groups, -1), rtol=1e-4)


@pytest.mark.parametrize("distance", ["square", "divergence"])
def test_fisher_is_the_curvature_of_the_distance(distance: str) -> None:
    """The logits are linear in each gate, so the curvature is known in closed form."""
    model, x = Bend(4, bend=False), normal(16, 6) * 2
    program = free(model, 4, 6)
    worth = rated(program, "fisher", one_batch(program, x), distance=distance, draws=1500)
    with torch.no_grad():
        moved = model.units(x)[:, :, None] * model.down.weight.T  # rows × units × logits
        logits = model(x)
    p = logits.softmax(-1)[:, None]
    spread = (p * moved.square()).sum(-1) - (p * moved).sum(-1).square()
    known = {"square": moved.square().sum((0, 2)) / logits.square().sum(), "divergence": spread.mean(0)}
    assert worths(worth)[0].tolist() == pytest.approx(known[distance].tolist(), rel=0.2)


def test_activation_is_the_norm_of_units_times_that_of_their_weights() -> None:
    model, data = Bend(3), Calibration(({"x": normal(7, 6)}, {"x": normal(5, 6, seed=1)}))
    with torch.no_grad():
        units = torch.cat([model.units(batch["x"]) for batch in data.batches])
        wanted = units.norm(dim=0) * model.down.weight.norm(dim=0)
    assert torch.allclose(worths(rated(free(model, 4, 6), "activation", data))[0].float(), wanted, rtol=1e-4)


class Merged(Heads):
    """Heads share a dimension with the batch, as in torch's own attention."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).view(batch, length, 2, 3).transpose(1, 2).reshape(-1, length, 3)
            for layer in (self.q, self.k, self.v)
        )
        read = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.o(read.view(batch, 2, length, 3).transpose(1, 2).reshape(batch, length, 6))


def test_a_batch_of_another_size_may_be_merged_with_heads() -> None:
    model, x = Merged(), normal(5, 7, 4)
    analysis = analyze(free(model, 3, 7, 4))
    units = Units(analysis.axis("qk"), analysis.axis("heads"))
    found = SCORES["activation"].rate(Evidence(analysis, Calibration(({"x": x},))), [units])[units]
    with torch.no_grad():
        q, k = (layer(x).unflatten(-1, (2, 3)).flatten(0, 1).norm(dim=0) for layer in (model.q, model.k))
    assert torch.allclose(worths(found).float(), q * k, rtol=1e-4)


class Complex(nn.Module):
    """Complex weights around units that a gate may scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Parameter(torch.randn(6, 9, dtype=torch.complex64))
        self.down = nn.Parameter(torch.randn(9, 5, dtype=torch.complex64))

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        units = x.to(torch.complex64) @ self.up
        return ((units if gate is None else units * gate) @ self.down).real


def test_complex_weights_count_with_both_parts() -> None:
    model, data = Complex(), labelled((8, 6))
    gate, batch = torch.ones(9, requires_grad=True), data.batches[0]
    (slope,) = torch.autograd.grad(supervised((model(batch["x"], gate),), batch), [gate])
    program = free(model, 4, 6)
    both = 2 * slope.abs()  # nothing says which zeros silence the units, so both matrices are gated
    assert torch.allclose(worths(rated(program, "taylor", data, loss=supervised))[0].float(), both, rtol=1e-4)
    parts = [value.abs().square().sum(dim) for value, dim in ((model.up, 0), (model.down, 1))]
    wanted = torch.stack([part / part.mean() for part in parts]).sum(0)
    assert torch.allclose(worths(rated(program, "magnitude", None))[0].float(), wanted)


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
    program = free(Bend(), 4, 6)
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


class Early(nn.Module):
    """The first output does not depend on the later units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Bend(6), Bend(2)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return h.tanh(), self.second(h)


def test_passes_agree_where_outputs_depend_on_a_part() -> None:
    analysis = analyze(free(Early(), 4, 6))
    asked, data = everything(analysis), Calibration(({"x": normal(20, 6)},))
    whole, parts = (SCORES["obs"].rate(Evidence(analysis, data, memory=size), asked) for size in (0, 1))
    assert len(asked) > 1
    for units in asked:
        assert torch.allclose(parts[units].errors, whole[units].errors, rtol=1e-9)


def test_chunks_keep_order_and_room() -> None:
    assert chunks([3, 1, 2, 9, 1, 1], lambda size: size, 4) == [[3, 1], [2], [9], [1, 1]]
    assert chunks([], lambda size: size, 4) == []


@pytest.mark.parametrize("name", ["taylor", "fisher", "obs"])
def test_a_loss_decides_what_matters(name: str) -> None:
    """Only the first output counts, and only one unit feeds it."""
    model = Bend(3)
    with torch.no_grad():
        model.down.weight[0] = F.one_hot(torch.tensor(4), 9)

    def first(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        return (outputs[0][:, 0] - batch["wanted"]).square().mean()

    x = normal(50, 6)
    data = Calibration(({"x": x, "wanted": normal(50, seed=1)},))
    worth = rated(free(model, 4, 6), name, data, loss=first)
    assert int(worth.order[0, -1]) == 4
    assert float(worth.errors[0, -2]) <= 1e-12 < float(worth.errors[0, -1])


class Chosen(Bend):
    """Gives the best class, which no gradient comes through; `beside` gives scores of its own, too."""

    def __init__(self, beside: bool) -> None:
        super().__init__(3)
        self.beside = Bend(2) if beside else None

    def forward(self, x: Tensor) -> Any:
        best = super().forward(x).argmax(-1)
        return best if self.beside is None else (best, self.beside(x))


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


class Counting(Bend):
    """Counts its runs in a buffer, and adds the count to what it gives."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__(3)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.add_(1)
        return super().forward(x) + self.runs


@pytest.mark.parametrize("name", BY_DATA)
def test_what_a_graph_writes_into_its_buffers_stays_out_of_the_program(name: str) -> None:
    program = free(Counting(), 4, 6)
    once = rated(program, name, one_batch(program, normal(8, 6)))
    assert torch.equal(rated(program, name, one_batch(program, normal(8, 6))).errors, once.errors)
    assert float(program.tensors()["runs"]) == 0


class Written(Bend):
    """Writes through a view into what a matrix gives, and later into what another one read."""

    def __init__(self) -> None:
        super().__init__(9)
        self.out = nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Any:
        h = self.down(self.units(x))
        h[:, :2].mul_(0.5)
        y = self.out(h)
        h.view(-1, 9).mul_(0.0)
        return y, h[:, 0]


@pytest.mark.parametrize("name", ["activation", "obs"])
def test_values_are_seen_as_they_were_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "DAMPING", 1e-9)
    model, x = Written(), normal(60, 6)
    analysis = analyze(free(model, 4, 6))
    units = next(Units(axis) for axis in analysis.axes if "out.weight" in axis.readers)
    worth = SCORES[name].rate(Evidence(analysis, Calibration(({"x": x},))), [units])[units]
    with torch.no_grad():
        read = model.down(model.units(x)) * torch.tensor([0.5] * 2 + [1.0] * 7)
        y, free_ones = model.out(read), list(range(9 - units.axis.size, 9))
    if name == "activation":
        wanted = read.norm(dim=0) * model.out.weight[0].abs()
        assert torch.allclose(worths(worth)[0].float(), wanted[free_ones])
    else:
        alone = [unexplained(read[:, [i for i in range(9) if i != j]], y, bias=True) for j in free_ones]
        assert float(worth.errors[0, 1]) == pytest.approx(min(alone) / 2, rel=1e-3)


def test_a_graph_that_overwrites_what_gradients_need_is_a_sentence() -> None:
    class Lost(Bend):
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
    program = free(Bend(1), 4, 6)
    worth = rated(program, "obs", one_batch(program, normal(1, 6).expand(30, 6)))
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


def test_the_gap_of_a_loss_is_twice_its_rise() -> None:
    objective = Objective(loss=lambda outputs, batch: outputs[0].sum() * batch["scale"])
    one, other, batch = (torch.ones(3),), (torch.full((3,), 3.0),), {"scale": torch.tensor(2.0)}
    assert objective.gap(one, other, batch) == 24
    assert objective.gap(other, one, batch) == 0


@pytest.mark.parametrize("distance", ["square", "divergence"])
def test_curvature_times_a_small_change_is_the_gap(distance: str) -> None:
    """Half a per cent of one unit goes: the gap is the square of that times its Fisher."""
    model, x = Bend(4, bend=False), normal(16, 6)
    program = free(model, 4, 6)
    objective = Objective(distance, draws=1500)
    worth = worths(rated(program, "fisher", one_batch(program, x), distance=distance, draws=1500))[0]
    with torch.no_grad():
        less = torch.ones(9).index_fill(0, torch.tensor(2), 1 - 5e-3)
        gap = objective.gap((model(x),), (model.down(model.units(x) * less),), {})
    assert gap / 5e-3**2 == pytest.approx(float(worth[2]), rel=0.2)
