# mypy: disable-error-code="no-any-return"
"""Expressions for zero propagation: between layers and a sum without weights, where only the laws about zeros decide exactness."""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fuzz.bench import Bench
from fuzz.pointwise import TABLE, pointwise

aten = torch.ops.aten
One = Callable[[Bench, Tensor], Tensor]
Two = Callable[[Bench, Tensor, Tensor], Tensor]

#: expressions that map zero to zero
KEEP: tuple[One, ...] = (
    lambda b, x: x.relu(), lambda b, x: x.tanh(), lambda b, x: F.gelu(x), lambda b, x: x.square(), lambda b, x: x ** 3,
    lambda b, x: x.clamp(-0.5, 0.5), lambda b, x: F.hardtanh(x), lambda b, x: x.masked_fill(x > 0.5, 0.0), lambda b, x: x * 2,
    lambda b, x: x + 0, lambda b, x: torch.where(x > 0, x, x * 0.1), lambda b, x: torch.where(x > 0, x, 0.0), lambda b, x: -x,
    lambda b, x: x.abs().sqrt(), lambda b, x: x / 2, lambda b, x: x * x.exp(), lambda b, x: x.flatten(1).reshape(x.shape), lambda b, x: F.elu(x),
)
#: expressions that may not
LOSE: tuple[One, ...] = (
    lambda b, x: x.atan().exp(), lambda b, x: x.sigmoid(), lambda b, x: F.elu(x) + 1, lambda b, x: x + 0.5, lambda b, x: 1 - x, lambda b, x: x.cos(),
    lambda b, x: F.softplus(x), lambda b, x: x ** 0, lambda b, x: x.square().add(1) ** -1, lambda b, x: x.clamp(0.1, 1),
    lambda b, x: x.clamp(min=0.1), lambda b, x: x.clamp(max=-0.1), lambda b, x: F.hardtanh(x, 0.1, 1.0), lambda b, x: F.threshold(x, 0.1, 0.7),
    lambda b, x: x.masked_fill(x < 0.5, 0.7), lambda b, x: torch.where(x > 0.5, x, 0.7), lambda b, x: 1 / (1 + x.square()), lambda b, x: F.logsigmoid(x),
    lambda b, x: x + b.p(1).expand(x.shape[-1]), lambda b, x: x + b.p(1), lambda b, x: x * 0 + 1, lambda b, x: x.exp() / x.exp().sum(),
    lambda b, x: x - 0.5, lambda b, x: x - b.p(1), lambda b, x: b.p(1) / x, lambda b, x: x.reciprocal(), lambda b, x: x / x, lambda b, x: x * (b.p(1) / x), lambda b, x: x * x.reciprocal(), lambda b, x: x ** -1,
    lambda b, x: (x[..., None] * b.p(3)).softmax(-1)[..., 0], lambda b, x: F.softplus(x).log(), lambda b, x: F.pad(x[:, None], (0, 0, 1, 0), value=0.5).sum(1),
    lambda b, x: F.hardsigmoid(x), lambda b, x: F.linear(x[..., None], b.p(2, 1), b.p(2)).sum(-1), lambda b, x: (x[..., None] + b.p(3)).relu().sum(-1),
    lambda b, x: F.pad(x[..., None], (1, 1), value=0.5).sum(-1), lambda b, x: F.layer_norm(F.pad(x[..., None], (0, 2)), (3,), b.p(3), b.p(3))[..., 1],
    lambda b, x: torch.cat([x[..., None], torch.ones_like(x[..., None])], -1).prod(-1) + torch.cat([x[..., None], b.p(x.shape[-1], 1).expand_as(x[..., None])], -1).sum(-1),
    lambda b, x: torch.stack([x, x.exp()], -1)[..., 1], lambda b, x: x[..., None].softmax(-1)[..., 0], lambda b, x: F.dropout(x.cos(), training=False),
    lambda b, x: F.batch_norm(x[..., None], b.still(x.shape[-1]), b.still(x.shape[-1]).square() + 0.5, b.p(x.shape[-1]), b.p(x.shape[-1])).sum(-1),
    lambda b, x: F.batch_norm(x[:, None], b.still(1), b.still(1).square() + 0.5, b.p(1), b.p(1)).sum(1), lambda b, x: x.clamp_min(0.1), lambda b, x: x.clamp_max(-0.1),
)
#: expressions that change the width, so only at the end
WIDER: tuple[One, ...] = (lambda b, x: F.pad(x, (1, 1), value=0.5), lambda b, x: torch.cat([x, b.p(1).expand(x.shape[0], 1)], -1).cos())
#: expressions of two values with the same dims
BOTH: tuple[Two, ...] = (
    lambda b, x, y: x + y, lambda b, x, y: x - y, lambda b, x, y: x * y, lambda b, x, y: torch.maximum(x, y), lambda b, x, y: x / (y + 3 * y.sign()),
    lambda b, x, y: y / x, lambda b, x, y: torch.where(x > y, x, y), lambda b, x, y: torch.lerp(x, y, 0.3), lambda b, x, y: x * y.sigmoid(),
    lambda b, x, y: torch.addcmul(x, y, y), lambda b, x, y: torch.hypot(x, y), lambda b, x, y: x.masked_fill(y > 0, 0.0), lambda b, x, y: torch.clamp(x, min=y),
    lambda b, x, y: torch.cat([x, y.exp()], -1)[..., : x.shape[-1]], lambda b, x, y: torch.stack([x, y], -1).sum(-1), lambda b, x, y: x * y + y,
)
#: expressions with one axis at two places of the result
OUTER: tuple[Two, ...] = (
    lambda b, x, y: x[..., :, None] * y[..., None, :], lambda b, x, y: x[..., :, None] + y[..., None, :], lambda b, x, y: x[..., :, None] - y[..., None, :],
    lambda b, x, y: torch.maximum(x[..., :, None], y[..., None, :]), lambda b, x, y: torch.einsum("...i,...j->...ij" if x.dim() > 2 else "bi,bj->bij", x, y),
    lambda b, x, y: x[..., :, None].expand(*x.shape, x.shape[-1]) * y[..., None, :].exp(), lambda b, x, y: x[..., :, None].repeat(1, 1, x.shape[-1]) * y[..., None, :].cos(),
    lambda b, x, y: x.unsqueeze(-1) @ y.unsqueeze(-2), lambda b, x, y: x[..., :, None].expand(*x.shape, x.shape[-1]) * 1.0,
    lambda b, x, y: x[..., :, None].tanh() * y[..., None, :].exp(), lambda b, x, y: x[..., :, None] / (y[..., None, :].square() + 1),
)


#: (kind of operands, expression), each by itself, for the decks
CASES: tuple[tuple[int, Callable[..., Tensor]], ...] = (*((1, case) for case in (*LOSE, *KEEP, *WIDER)), *((2, case) for case in BOTH), *((3, case) for case in OUTER))


def case(b: Bench, number: int) -> Tensor:
    """A sum without weights directly over one case's result; as one number."""
    places, function = CASES[number % len(CASES)]
    n = b.pick(3, 4, 5)
    x, y = b(n), b(n)
    if places == 1:
        return _summed(b, function(b, x))
    if places == 2:
        return _summed(b, function(b, *b.pick((x, y), (x, y.cos()), (x, (b.p(n) * 2).expand_as(x)))))
    x, y = b.pick((x, y), (x, y), (x, (b.p(n) * 2).expand_as(x)))
    tie = b.pick(x + y, x * y, x - y) * b.p(n)
    pairs = function(b, x, y)
    return tie.sum().asinh() + _summed(b, b.pick(pairs, pairs.tanh()).sum(b.pick(-1, -2)))


def _summed(b: Bench, value: Tensor) -> Tensor:
    return b.pick(value.sum(-1), value.square().sum(-1), (value * value.tanh()).sum(-1)).sum().asinh()


def expression(b: Bench) -> Tensor:
    """A sum without weights over some operators on the results of two layers; as one number."""
    n = b.pick(3, 4, 5)
    x, y = b(n), b(n)
    x, y = b.pick((x, y), (x, y), (y, x), (x, x), (x, (b.p(n) * 2).expand_as(x)), (b.p(n).expand_as(x), x), (x, y + x))
    for _ in range(b.pick(0, 1, 1, 2)):
        x, y = _step(b, x, y)
    ways = (_plain, _plain, _outer, _outer, _paired, _joined)
    return b.pick(*ways)(b, x, y)


def _step(b: Bench, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    drawn = b.draw.random()
    if drawn < 0.3:
        return b.pick(*KEEP)(b, x), y
    if drawn < 0.5:
        return b.pick(*LOSE)(b, x), y
    if drawn < 0.6:
        return pointwise(b.pick(*TABLE[1]), x), y
    return b.pick(*BOTH)(b, x, y), b.pick(x, y)


def _plain(b: Bench, x: Tensor, y: Tensor) -> Tensor:
    """One operator of the laws directly before the sum."""
    value: Any = b.pick(b.pick(*LOSE)(b, x), b.pick(*KEEP)(b, x), b.pick(*BOTH)(b, x, y))
    return _summed(b, value)


def _outer(b: Bench, x: Tensor, y: Tensor) -> Tensor:
    """One value of x and y at two places, with the dims of both tied by another sum."""
    tie = (b.pick(x + y, x * y, x - y) * b.p(x.shape[-1])).sum()
    pairs = b.pick(*OUTER)(b, x, y)
    pairs = b.pick(pairs, pairs.relu(), pairs.atan().exp(), pairs.square(), pairs.tanh())
    return tie.asinh() + b.pick(pairs.sum(-1).sum(-1), pairs.sum(-1).square().sum(-1), pairs.sum(-2).sum(-1), pairs.sum((-1, -2))).sum().asinh()


def _paired(b: Bench, x: Tensor, y: Tensor) -> Tensor:
    """A product of two activations that sums over the axis."""
    x, y = b.pick((x, y), (b.pick(*LOSE)(b, x), y), (b.pick(*LOSE)(b, x), b.pick(*LOSE)(b, y)), (b.pick(*KEEP)(b, x), y))
    value = b.pick(torch.einsum("bi,bi->b", x, y), x @ y.transpose(0, 1), torch.baddbmm(b.p(1, 1, 1), x[:, None], y[..., None]),
                   F.scaled_dot_product_attention(x[:, None], y[:, None], y[:, None]).sum(-1))
    return value.sum().asinh()


def _joined(b: Bench, x: Tensor, y: Tensor) -> Tensor:
    """A concatenation of x and a value that may not be zero where x is, along the axis or beside it."""
    other = b.pick(y, b.pick(*LOSE)(b, y), torch.ones_like(x))
    place = b.pick(-1, -2, -3)
    value = torch.cat([x, other], -1) if place == -1 else torch.stack([x, other], place)
    return b.pick(value, b.pick(*LOSE)(b, value), b.pick(*KEEP)(b, value)).sum(-1).sum().asinh()
