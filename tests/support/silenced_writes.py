"""Nets for the laws about zeros of what writes or adds a part of a value: exact ones, and counter-nets in which what is written stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from support.silenced import GATE, UNITS, UP, Row, aten, no

Write = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(a base [b, t, 8], values of its size, the input) → the base with values written or added."""


def places() -> Tensor:
    """Two positions of three."""
    return torch.tensor([0, 2])


def spread(x: Tensor) -> Tensor:
    """A position for each element of [b, t, 8], from the input alone."""
    return x[..., :1].relu().long().clamp(0, 2).expand(*x.shape[:2], UNITS)


def unsafe_put(base: Tensor, values: Tensor, _: Tensor) -> Tensor:
    found: Tensor = aten._unsafe_index_put(base, [None, places()], values[:, :2])
    return found


WRITES: dict[Any, Write] = {
    aten.index_add: lambda base, values, _: base.index_add(1, places(), values[:, :2]),
    aten.index_copy: lambda base, values, _: base.index_copy(1, places(), values[:, :2]),
    aten.index_put: lambda base, values, _: base.index_put((places()[:1], places()[:1]), values[0, :1]),
    aten._unsafe_index_put: unsafe_put,
    aten.masked_scatter: lambda base, values, x: base.masked_scatter(x[..., :1] > 0, values),
    aten.scatter_add: lambda base, values, x: base.scatter_add(1, spread(x), values),
    aten.scatter_reduce: lambda base, values, x: base.scatter_reduce(1, spread(x), values, "sum"),
    aten.select_scatter: lambda base, values, _: base.select_scatter(values[:, 0], 1, 1),
    aten.slice_scatter: lambda base, values, _: base.slice_scatter(values[:, :2], 1, 1, 3),
}
FILLS: dict[Any, Callable[[Tensor, float], Tensor]] = {
    aten.index_fill: lambda base, number: base.index_fill(1, places(), number),
    aten.full: lambda base, number: base.relu() + torch.full((UNITS,), number),
    aten.new_full: lambda base, number: base.relu() + base.new_full((UNITS,), number),
}


def _written(write: Write, stays: bool) -> Callable[[Any, Tensor], Tensor]:
    def forward(net: Any, x: Tensor) -> Tensor:
        values = net.gate(x)
        return write(net.up(x), values.exp() if stays else values, x).sin().sum(-1)

    return forward


def _filled(fill: Callable[[Tensor, float], Tensor], number: float) -> Callable[[Any, Tensor], Tensor]:
    return lambda net, x: fill(net.up(x), number).sin().sum(-1)


PARTS: list[Row] = [
    *(
        Row(f"{name}: what can be silent", name, _written(write, False), UP + GATE)
        for name, write in WRITES.items()
    ),
    *(
        no(f"{name}: what stays", name, _written(write, True), silent=UP + GATE)
        for name, write in WRITES.items()
    ),
    *(Row(f"{name}: zeros", name, _filled(fill, 0.0)) for name, fill in FILLS.items()),
    *(no(f"{name}: another number", name, _filled(fill, 1.5)) for name, fill in FILLS.items()),
]
