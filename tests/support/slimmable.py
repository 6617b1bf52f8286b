# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Helpers for the tests of slim: small programs with calibration data, and the pass itself at a small point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune import Program, capture
from fxprune.calibration import Calibration, check_calibration
from fxprune.cost import BUDGETS
from fxprune.cost.budgets import Key, Meter
from fxprune.cost.count import count_flops
from fxprune.ir import Point
from fxprune.passes import Slim
from fxprune.pipeline import Context, Outcome
from fxprune.search import budget_search
from support.models import captured

BATCH, LENGTH = 2, 6
POINT: Point = {"batch": BATCH, "length": LENGTH}
AUTO = Dim.AUTO
Subject = tuple[Program, Calibration]
Wanted = Mapping[Key, tuple[str, Callable[[], Program]]]


class Layer(nn.Module):
    """A transformer of one layer whose feed-forward branch, where it is idle, adds nothing."""

    def __init__(self, idle: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        for parameter in self.down.parameters() if idle else ():
            nn.init.zeros_(parameter)

    def attended(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        h = self.first(x)
        q, k, v = (p(h).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
        return x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.attended(ids)
        return self.head(x + self.down(self.up(self.second(x)).relu()))


@cache
def layer(idle: bool = False) -> Subject:
    torch.manual_seed(0)
    ids = [torch.randint(0, 11, (4, 7)) for _ in range(6)]
    program = capture(Layer(idle).eval(), (ids[0],), dynamic_shapes=({0: AUTO, 1: AUTO},))
    return program, check_calibration(program, ids)


class Convs(nn.Module):
    """Two residual blocks on one stream of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 3)
        self.ins = nn.ModuleList(nn.Conv2d(6, 8, 3, padding=1) for _ in range(2))
        self.outs = nn.ModuleList(nn.Conv2d(8, 6, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        h = (h + self.outs[0](self.norm(self.ins[0](h)).relu())).relu()
        h = (h + self.outs[1](self.ins[1](h).relu())).relu()
        return self.head(h.mean((2, 3)))


@cache
def subject(name: str) -> Subject:
    torch.manual_seed(0)
    if name == "convs":
        images = [torch.randn(4, 2, 6, 6) for _ in range(6)]
        program = capture(Convs().eval(), (images[0],), dynamic_shapes=({0: AUTO},))
        return program, check_calibration(program, images)
    ids = [torch.randint(0, 99, (4, LENGTH)) for _ in range(6)]
    program = captured(name, dynamic=True)
    return program, check_calibration(
        program, [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]
    )


CONTEXT = {"data", "loss", "cache", "observe"}
"""Options of `slim` that go to the context."""

COUNTED: dict[str, dict[str, float]] = {}


def remembered(name: str) -> Meter:
    """A meter that counts the cost of each part once for all tests; tests/cost/test_table.py tests the counting."""

    def meter(wanted: Wanted) -> dict[Key, float]:
        for signature, make in wanted.values():
            if signature not in COUNTED:
                made = make()
                COUNTED[signature] = {n: row.count(made, None) for n, row in BUDGETS.items() if row.count}
        return {key: COUNTED[signature][name] for key, (signature, _) in wanted.items()}

    return meter


def slim(made: Subject, **options: Any) -> Outcome:
    """The pass, at a small point and without a cache."""
    given = {"batch": BATCH, "length": LENGTH, **options}
    own = {"cache": False, "data": made[1], **{name: given.pop(name) for name in CONTEXT & given.keys()}}
    with patch.object(budget_search, "counting_meter", remembered):
        return Slim(**given).run(made[0], Context(**own))


def kept(outcome: Outcome) -> dict[str, int]:
    """How many units each cut axis keeps."""
    return {
        name: len(outcome.selection.axes[name][0])  # type: ignore[arg-type]
        if name in outcome.selection.within
        else len(outcome.selection[name])
        for name in outcome.selection
    }


def share_of(program: Program, slimmed: Program, name: str) -> float:
    """The share of a budget's quantity that is left, counted here and not by the pass."""
    if name == "flops":
        return count_flops(slimmed, POINT) / count_flops(program, POINT)
    sizes = []
    for each in (program, slimmed):
        tensors = {id(value): value for value in each.tensors().values()}.values()
        if name == "params":
            sizes.append(sum(value.numel() for value in tensors if isinstance(value, nn.Parameter)))
        else:
            sizes.append(sum(value.numel() * value.element_size() for value in tensors))
    return sizes[1] / sizes[0]
