# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Bench for one operator in a random net: operands of any size with prunable dims, and ways to read a result of any shape.

Each bench makes layers and parameters of its own, so that a pin by one operator keeps no other one's dims whole.
"""

from __future__ import annotations

import random
from math import prod
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils import _pytree as pytree

LETTERS = "xyzuvw"
SILENT = ("sum", "sum", "square", "pairs", "place")
READERS = (*SILENT, "linear", "vector", "weights", "weights", "weights")


class Net(Protocol):
    """Source of a bench's parameters."""

    def layer(self, i: int, o: int, bias: bool = True) -> nn.Module: ...

    def weight(self, *sizes: int) -> Tensor: ...


class Bench:
    """Operands for one operator: `bench(3, 4)` depends on the input and is [batch, 3, 4], `bench.p(3, 4)` is a parameter."""

    def __init__(self, net: Net, x: Tensor, seed: int) -> None:
        self.net, self.x, self.draw = net, x, random.Random(seed)
        self.base = x.select(
            1, self.draw.randrange(x.shape[1])
        ).asinh()  # grows slowly, and is nowhere flat: a difference stays one
        self.batch = x.shape[0]

    def __call__(self, *sizes: int) -> Tensor:
        way, width = self.draw.randrange(7), self.base.shape[-1]
        letters = LETTERS[: len(sizes)]
        if way == 0:
            return torch.einsum(f"bi,i{letters}->b{letters}", self.base, self.p(width, *sizes))
        if way == 1:
            return self.p(*sizes) * self.base.sum(-1)[(..., *(None,) * len(sizes))]
        flat = self.net.layer(width, prod(sizes), bias=way != 2)(self.base)
        value = flat.unflatten(-1, sizes) if len(sizes) > 1 else flat
        return value.tanh() if way == 3 else value

    def p(self, *sizes: int) -> Tensor:
        """A new parameter."""
        return self.net.weight(*sizes)

    def still(self, *sizes: int) -> Tensor:
        """A new parameter that does not train, as a running mean."""
        return self.p(*sizes).requires_grad_(False)

    def row(self, size: int) -> Tensor:
        """An activation of one dim."""
        return self(size).sum(0)

    def inside(self, *sizes: int) -> Tensor:
        """Positive numbers below 1 that depend on the input; operators with poles are finite there."""
        return self(*sizes).sigmoid() * 0.8 + 0.1

    def pick(self, *options: Any) -> Any:
        """One of the options."""
        return self.draw.choice(options)

    def read(self, result: Any, ways: tuple[str, ...] = READERS) -> Tensor:
        """All tensors of a result as one number that nothing pins; asinh keeps it small, and is nowhere flat."""
        values = [
            value for value in pytree.tree_leaves(result) if isinstance(value, Tensor) and value.numel()
        ]
        first, *others = [self._number(_real(value), ways) for value in values]
        return sum(others, start=first)

    def _number(self, y: Tensor, ways: tuple[str, ...]) -> Tensor:
        way = self.draw.choice(ways)
        if y.dim() and way != "weights":
            y = self._summed(y, way)
        weighted = way not in SILENT or self.draw.random() < 0.3
        return (y * self.p(*y.shape) if weighted and y.dim() else y).sum().asinh()

    def _summed(self, y: Tensor, way: str) -> Tensor:
        """The value without one of its dims, with or without weights."""
        letters = LETTERS[: y.dim() - 1] + "i"
        if way == "place":
            return y.sum(self.draw.randrange(y.dim()))
        if way == "square":
            return (y * y).sum(-1)
        if way == "pairs":
            return torch.einsum(f"{letters},{letters}->{letters[:-1]}", y, y.tanh())
        if way == "linear":
            return F.linear(y, self.p(3, y.shape[-1]))
        if way == "vector":
            y = y.movedim(self.draw.randrange(y.dim()), -1)
            return y @ self.p(y.shape[-1])
        return y.sum(-1)


def _real(value: Tensor) -> Tensor:
    return (torch.view_as_real(value.resolve_conj()) if value.is_complex() else value).double()
