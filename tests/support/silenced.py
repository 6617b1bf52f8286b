# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""One net per law about zeros, with the units of its axis silenced by hand, and counter-nets where the law must say no.

What is silenced is written for each net by someone who knows it: (parameter, dim) pairs whose removed indices become zero, and layers
whose removed outputs a hook sets to -inf. No part of the analysis is used, and `fxprune.rules` only names the law of an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

aten = torch.ops.aten

BATCH, LENGTH, INTO, UNITS, DEPTH = 3, 5, 6, 8, 4

Places = tuple[tuple[str, int], ...]

UP: Places = (("up.weight", 0), ("up.bias", 0))
GATE: Places = (("gate.weight", 0), ("gate.bias", 0))


class Net(nn.Module):
    """Layers and parameters with an axis of 8 units, or without it; `function` computes with those that a row needs."""

    table: Tensor

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.up, self.gate = nn.Linear(INTO, UNITS), nn.Linear(INTO, UNITS)
        self.q, self.k, self.v = (nn.Linear(INTO, UNITS * DEPTH) for _ in range(3))
        self.narrow, self.inner = nn.Linear(INTO, DEPTH), nn.Linear(DEPTH, DEPTH)
        self.norm, self.same = nn.BatchNorm1d(UNITS), nn.Identity()
        self.shift, self.one = nn.Parameter(torch.empty(UNITS)), nn.Parameter(torch.empty(1))
        self.stacked = nn.Parameter(torch.empty(UNITS, INTO, DEPTH))
        self.offset = nn.Parameter(torch.empty(UNITS, 1, DEPTH))
        self.words, self.filters = nn.Embedding(9, UNITS), nn.Conv1d(INTO, UNITS, 3)
        self.direction, self.length = (
            nn.Parameter(torch.empty(UNITS, INTO)),
            nn.Parameter(torch.empty(UNITS, 1)),
        )
        self.register_buffer("table", torch.empty(LENGTH, UNITS))
        self.apart = nn.Parameter(torch.empty(UNITS, UNITS))
        _randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def heads(self, projected: Tensor) -> Tensor:
        """[b, t, 8·4] as [b, 8, t, 4]."""
        return projected.unflatten(-1, (UNITS, DEPTH)).transpose(1, 2)


def _randomise(net: nn.Module) -> None:
    """Fill parameters, biases, buffers and statistics with random numbers, none of them near zero."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=random, dtype=torch.float64)
                value.copy_(drawn.abs() + 0.5 if name.endswith("var") else drawn + 0.2 * drawn.sign())


@dataclass(frozen=True)
class Row:
    """One net: the operator whose law decides, what computes, what is silenced by hand, and where the law says no, the reason.

    `unit` is a parameter's dim along the axis. `silent` are zeroed, `width` rows for each unit; `never`: layers whose removed outputs
    become -inf. `pinned`: no removal is possible.
    """

    name: str
    operator: Any
    function: Callable[[Any, Tensor], Tensor]
    silent: Places = UP
    never: tuple[str, ...] = ()
    unit: tuple[str, int] = ("up.weight", 0)
    width: int = 1
    why: str = ""
    pinned: bool = False

    def build(self) -> nn.Module:
        return Net(self.function).double().eval()

    def silence(self, net: nn.Module, removed: Sequence[int]) -> None:
        """Zero parameters and mask outputs of an eager module at the removed units."""
        gone = torch.tensor(removed)
        rows = (gone[:, None] * self.width + torch.arange(self.width)).flatten()
        with torch.no_grad():
            for name, dim in self.silent:
                net.get_parameter(name).index_fill_(dim, rows, 0.0)
        for name in self.never:
            net.get_submodule(name).register_forward_hook(
                lambda _, __, logits: logits.index_fill(-1, gone, float("-inf"))
            )


NO_ZEROS = "no zeros of weights silence it at "


def no(
    name: str, operator: Any, function: Callable[[Any, Tensor], Tensor], at: str = "sum_1", **more: Any
) -> Row:
    """A counter-net: no zeros silence a contraction (the node `at`)."""
    return Row(name, operator, function, why=NO_ZEROS + at, **more)
