# mypy: disable-error-code="no-any-return"
"""State: neither a proof nor a capture changes the user's model, the program, or what is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import Selection, capture, export_onnx, save_pt2, shrink, verify
from fxprune.errors import CaptureError
from support.models import distance


class Counter(nn.Module):
    """Multiplies by the number of calls."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.down(torch.relu(self.up(x))) * self.count


def test_what_is_proven_and_written_starts_from_the_users_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Counter().eval(), torch.randn(3, 8)
    program = capture(model, (x,))
    selection = Selection({"ffn": range(16)})
    slim = shrink(program, selection)
    assert verify(program, slim, selection).status == "equal"
    assert float(model.count) == 0
    path = save_pt2(slim, tmp_path / "model.pt2")
    export_onnx(slim, tmp_path / "model.onnx")
    first = slim(x)
    assert torch.equal(slim(x), first)
    loaded = torch.export.load(path)
    assert float(loaded.state_dict["count"]) == 0
    torch.testing.assert_close(loaded.module()(x), first)
    shipped = slim.module()
    torch.testing.assert_close(shipped(x), first)
    torch.testing.assert_close(shipped(x), 2 * first)


class Caching(nn.Module):
    """Caches a table, a list and a flag, as rotary tables and anchors are."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.table: Tensor | None = None
        self.sizes: list[int] = []
        self.known: dict[str, Any] = {"shapes": set()}
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(8.0)
            self.register_buffer("late", torch.ones(8), persistent=False)
        self.sizes.append(x.shape[0])
        self.known["shapes"].add(tuple(x.shape))
        self.known["last"] = x
        y = self.down(torch.relu(self.up(x))) + self.table
        if self.broken and bool(y.sum() > 0):
            return y.numpy()
        return y


def described(module: nn.Module) -> dict[str, str]:
    return {
        f"{name}.{key}": repr(value)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
    }


@pytest.mark.parametrize("warm", [False, True], ids=["never called", "called before"])
@pytest.mark.parametrize("broken", [False, True], ids=["captured", "refused"])
def test_capture_leaves_the_model_as_it_was(broken: bool, warm: bool) -> None:
    torch.manual_seed(0)
    model, x = Caching(broken).eval(), torch.randn(3, 8)
    if warm:
        model.broken = False
        model(x)
        model.broken = broken
    before = described(model)
    if broken:
        with pytest.raises(CaptureError):
            capture(model, (x,))
    else:
        program = capture(model, (x,))
        torch.testing.assert_close(program(x), Caching.forward(model, x))
        return
    assert described(model) == before
    model.broken = False
    assert torch.isfinite(model(x)).all()


def test_a_captured_model_has_the_attributes_that_it_had() -> None:
    model, x = Caching().eval(), torch.randn(3, 8)
    before = described(model)
    capture(model, (x,))
    assert described(model) == before
    assert type(model(x)) is Tensor


@pytest.mark.parametrize("act", [fxprune.analyze, fxprune.show])
def test_looking_at_a_program_changes_nothing(act: Callable[[fxprune.Program], Any]) -> None:
    program = capture(Counter().eval(), (torch.randn(3, 8),))
    act(program)
    assert float(program.tensors()["count"]) == 0


def test_capture_leaves_the_random_state() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    before = torch.random.get_rng_state()
    capture(Drawing().eval(), (torch.ones(3, 8),))
    assert torch.equal(torch.random.get_rng_state(), before)


class CachesWithAFlag(nn.Module):
    """A table that its first use writes into a buffer; a Python number counts the rows that are filled."""

    def __init__(self) -> None:
        super().__init__()
        self.rates, self.filled = nn.Parameter(torch.rand(4)), 0
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("cache", torch.zeros(16, 4), persistent=False)

    def table(self, steps: Tensor) -> Tensor:
        if len(steps) <= self.filled:
            return self.get_buffer("cache")[: len(steps)].detach()
        made = steps[:, None] * self.rates
        self.get_buffer("cache")[: len(steps)] = made.detach()
        self.filled = len(steps)
        return made

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], dtype=x.dtype)
        query, key = self.one(x) * self.table(steps).cos(), self.two(x) * self.table(steps).cos()
        found: Tensor = query @ key.mT
        return found


class Counts(nn.Module):
    """Each call answers otherwise than the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.linear(x) * self.calls
        return found


@pytest.mark.parametrize("kind", [CachesWithAFlag, Counts])
def test_a_program_is_what_the_first_call_says(kind: type[nn.Module]) -> None:
    """The oracle is a module of the same weights that nobody has called."""
    torch.manual_seed(0)
    model, x = kind().eval(), torch.rand(2, 5, 4)
    unused = copy.deepcopy(model)
    assert distance(capture(model, (x,))(x), unused(x)) < 1e-6
    assert [getattr(model, name, 0) for name in ("filled", "calls")] == [0, 0]
