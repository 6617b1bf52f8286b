# mypy: disable-error-code="no-any-return"
"""Helpers for the tests of weight re-fitting: small nets, their data and selections, and measures of error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxprune import Program, Selection, analyze, apply, capture
from fxprune.calibration import Calibration
from fxprune.calibration.least_squares import Fit, Sums
from fxprune.calibration.repair import Repaired, repair
from support.models import captured

FREE = torch.export.Dim.AUTO


WIDTH = 16


def summed(x: Tensor, y: Tensor) -> Sums:
    """The sums of a least-squares problem, accumulated in two parts."""
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


class Branch(nn.Module):
    """A norm, and two layers with units between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(self.norm(x)).relu())


class Stream(nn.Module):
    """Two branches on a residual stream, one after the other where a subclass does not arrange them in another way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = Branch(), Branch(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        return self.head(x + self.b(x))


class Parallel(Stream):
    """Stream with both branches computed before either is added."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.head(x + a + b)


class Placed(Stream):
    """Stream with a table of positions, as large as the value, that is added to a matrix's result."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(32, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) + self.place
        return self.head(x + self.b(x))


class Latent(Stream):
    """Stream that begins with a parameter, expanded to the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start.expand(x.shape[0], -1) + self.a(x)
        return self.head(x + self.b(x))


class Counting(Stream):
    """Stream that counts its runs in a buffer, and whose result depends on the count."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.add_(1)
        return super().forward(x * self.runs)


def free(model: nn.Module, *sizes: int) -> Program:
    """The program of a model, captured with a free batch."""
    return capture(model.eval(), (torch.randn(sizes),), dynamic_shapes=({0: FREE},))


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def calibration(program: Program, count: int, *sizes: int) -> Calibration:
    name = program.input_names()[0]
    return Calibration(tuple({name: normal(*sizes, seed=seed)} for seed in range(count)))


def without_last(program: Program, gone: int = 4) -> Selection:
    """A selection without the last units of each exact axis of neurons or channels."""
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


def own_targets(node: Any, order: Any) -> tuple[Any, None]:
    return node, None


class Placewise(nn.Module):
    """A point-wise convolution over places that a cut takes away, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.mix, self.down = nn.Linear(6, WIDTH), nn.Conv1d(7, 7, 1), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        return self.down(h * self.mix(h))


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
    """A selection without a quarter of the neurons, channels and heads, and without a tenth of the dims within heads, rounded up."""
    roles = {"ffn": 0.75, "channels": 0.75, "heads": 0.75, "qk": 0.9, "v": 0.9}
    axes = [axis for axis in analyze(program).axes if axis.exact and axis.role in roles]
    axes = [axis for axis in axes if "queries" not in axis.name and axis.size > 2]
    return Selection({axis.name: range(int(axis.size * roles[axis.role])) for axis in axes})


def repaired(name: str, selection: Selection, how: str) -> tuple[Program, Program, Repaired]:
    program = captured(name, dynamic=True)
    slim = apply(program, selection)
    data = Calibration(tuple(family_batches(name, 8, seed=0)))
    return program, slim, repair(program, slim, selection, data, how)
