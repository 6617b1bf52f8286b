# mypy: disable-error-code="no-any-return"
"""Helpers for tests/scores: small nets, their data, and reference computations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from fxprune import Program, analyze, capture
from fxprune.analysis import Analysis, Axis, Units
from fxprune.analysis.sites import find_sites
from fxprune.calibration import Calibration, Objective
from fxprune.calibration.run import run_calibration
from fxprune.ir import attribute, copy_graph, rebuild
from fxprune.scores import SCORES, Evidence, Worth, base

FREE = torch.export.Dim.AUTO


BY_DATA = [name for name, row in SCORES.items() if row.needs_data]


class TwoLayers(nn.Module):
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
    """Attention of two heads with three dims each, with an optional gate on the results of the heads."""

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
    """The program of a model, captured with a free batch."""
    return capture(model.eval(), (torch.randn(sizes),), dynamic_shapes=({0: FREE},))


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def one_batch(program: Program, value: Tensor) -> Calibration:
    return Calibration(({program.input_names()[0]: value},))


def rated(program: Program, name: str, data: Calibration | None, **options: Any) -> Worth:
    """The worth of the units of a program's only axis, by a score."""
    analysis = analyze(program)
    units = Units(analysis.axes[0])
    assert len(analysis.axes) == 1
    return SCORES[name].rate(Evidence(analysis, data, Objective(**options)), [units])[units]


def unit_errors(worth: Worth) -> Tensor:
    """The worth of each unit by itself, [groups, size]."""
    return torch.empty_like(worth.errors[:, 1:]).scatter_(1, worth.order, worth.errors.diff(dim=1))


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
    """The units of all axes, and those of axes within heads, for each head apart."""
    within = [Units(axis, site.main) for site in find_sites(analysis) for axis in site.inner]
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


def with_unit_zeroed(program: Program, axis: Axis, unit: int, names: Sequence[str]) -> Program:
    """The program with one unit's part of these parameters at zero."""
    made: dict[str, Tensor] = {}
    for member in axis.members:
        if member.name in names:
            whole = made.get(member.name, attribute(program.graph_module, member.name).detach())
            zeros = whole.index_fill(member.dim, torch.tensor(member.indices(unit)), 0.0)
            made[member.name] = nn.Parameter(zeros)
    return rebuild(program, copy_graph(program), made)


def unexplained(known: Tensor, wanted: Tensor, bias: bool) -> float:
    """The share of a target's squares that a least-squares fit on known columns does not explain."""
    columns = torch.cat([known, torch.ones(len(known), 1)], 1) if bias else known
    columns, target = columns.double(), wanted.double()
    fitted = torch.linalg.lstsq(columns, target).solution if columns.shape[1] else None
    left = target if fitted is None else target - columns @ fitted
    return float(left.square().sum() / target.square().sum())


class Twice(TwoLayers):
    """Net with two outputs that read the units."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Any:
        return self.down(self.units(x)), self.other(self.units(x))


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
    """The gradients of a supervised loss with respect to gates in the model, and each batch's share of the rows."""
    slopes: list[Tensor] = []
    for batch in data.batches:
        model.gate = torch.ones(2, 3, requires_grad=True)
        slopes += torch.autograd.grad(supervised((model(batch["x"]),), batch), [model.gate])
    model.gate = None
    return slopes, [len(batch["x"]) / data.rows for batch in data.batches]


class Merged(Heads):
    """Heads that share a dimension with the batch, as in torch's own attention."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).view(batch, length, 2, 3).transpose(1, 2).reshape(-1, length, 3)
            for layer in (self.q, self.k, self.v)
        )
        read = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.o(read.view(batch, 2, length, 3).transpose(1, 2).reshape(batch, length, 6))


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


class Early(nn.Module):
    """Net whose first output does not depend on the later units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = TwoLayers(6), TwoLayers(2)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)
        return h.tanh(), self.second(h)


class Chosen(TwoLayers):
    """Net that returns the best class, which has no gradient; with `beside`, the scores of another net, too."""

    def __init__(self, beside: bool) -> None:
        super().__init__(3)
        self.beside = TwoLayers(2) if beside else None

    def forward(self, x: Tensor) -> Any:
        best = super().forward(x).argmax(-1)
        return best if self.beside is None else (best, self.beside(x))


class Counting(TwoLayers):
    """Net that counts its runs in a buffer, and adds the count to its result."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__(3)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.add_(1)
        return super().forward(x) + self.runs


class Written(TwoLayers):
    """Net that writes through a view into the result of a matrix, and later into the input of another one."""

    def __init__(self) -> None:
        super().__init__(9)
        self.out = nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Any:
        h = self.down(self.units(x))
        h[:, :2].mul_(0.5)
        y = self.out(h)
        h.view(-1, 9).mul_(0.0)
        return y, h[:, 0]


def counted_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that fills with the number of meters of each pass over the data."""
    counted: list[int] = []

    def counting(
        program: Program,
        data: Calibration,
        meters: Sequence[Any],
        objective: Objective,
        segment: int | None = None,
    ) -> None:
        counted.append(len(meters))
        run_calibration(program, data, meters, objective, segment)

    monkeypatch.setattr(base, "run_calibration", counting)
    return counted
