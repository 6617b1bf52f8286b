# mypy: disable-error-code="no-any-return"
# A module called is Any to the type checker.
"""Wilder random nets for the fuzzer: pointwise operators straight from the rule table, and the families that `strategies` leaves out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fxprune.rules.pointwise import UNTAGGED, is_in_place
from strategies import INTO, KINDS, RandomNet, Step

WIDEST = 24
#: jumps (a rounding error moves them), random numbers, and memory that nobody wrote
UNFIT = frozenset(
    """empty_like sign sgn signbit round trunc floor ceil frac fix heaviside fmod remainder floor_divide
    nextafter frexp native_dropout rrelu rrelu_ normal_ uniform_ bernoulli_ nan_to_num_ eq ne lt gt le ge copysign copysign_
    isclose not_equal greater less greater_equal less_equal isfinite fix_ sign_ sgn_ round_ trunc_ floor_ ceil_ frac_
    remainder_ fmod_ floor_divide_ eq_ ne_ lt_ gt_ le_ ge_ to_ digamma polygamma lgamma lgamma_ digamma_ tan tan_ nextafter_
    special_zeta zeta igamma igammac igamma_ igammac_ heaviside_ ldexp_ bernoulli dropout_ feature_dropout alpha_dropout
    alpha_dropout_ feature_alpha_dropout dropout erfinv erfinv_ logit logit_ special_airy_ai""".split()  # noqa: SIM905
)


def _tagged() -> Iterator[Any]:
    for name in sorted(dir(torch.ops.aten)):
        packet = getattr(torch.ops.aten, name)
        if not isinstance(packet, torch._ops.OpOverloadPacket) or name in UNFIT or name.startswith("_"):
            continue
        overloads = [getattr(packet, overload) for overload in packet.overloads() if "out" not in overload]
        if packet in UNTAGGED or any(torch.Tag.pointwise in overload.tags for overload in overloads):
            yield packet


def _fits(packet: Any, count: int) -> bool:
    """Whether a packet takes so many tensors of one shape and gives one of that shape, finite where its operands are in [0.1, 0.9]."""
    operands = [torch.linspace(0.1, 0.9, 6, dtype=torch.float64).reshape(2, 3) for _ in range(count)]
    try:
        result = packet(*(value.clone() for value in operands))
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    same = isinstance(result, Tensor) and result.shape == (2, 3) and result.dtype == torch.float64
    return same and bool(result.isfinite().all())


TABLE = {count: [packet for packet in _tagged() if _fits(packet, count)] for count in (1, 2, 3)}


def _is_total(packet: Any, count: int) -> bool:
    """Whether the operator is finite at negative operands and at zero too, however they meet."""
    ends = torch.tensor([-2.0, -0.3, 0.0, 0.7, 2.0], dtype=torch.float64)
    operands = torch.cartesian_prod(*[ends] * count).reshape(-1, count).unbind(-1)
    return bool(packet(*(value.clone() for value in operands)).isfinite().all())


TOTAL = {
    (count, packet) for count, packets in TABLE.items() for packet in packets if _is_total(packet, count)
}


def _pointwise(packet: Any, *operands: Tensor) -> Tensor:
    """The operator where it is finite, else on operands between 0.1 and 0.9; an in-place one writes a copy."""
    total = (len(operands), packet) in TOTAL
    ready = [x.clamp(-2, 2) if total else x.sigmoid() * 0.8 + 0.1 for x in operands]
    return packet(ready[0].clone(), *ready[1:]) if is_in_place(packet) else packet(*ready)


def _even(x: Tensor) -> bool:
    return x.shape[-1] % 2 == 0 and x.shape[-1] > 2


MOVES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: torch.stack([x, x.relu()], -1).flatten(-2),
    lambda x: torch.stack([x, x.tanh()], -2).flatten(-2),
    lambda x: x.repeat(1, 1, 2),
    lambda x: x.repeat_interleave(2, dim=-1),
    lambda x: F.pad(x, (1, 2)),
    lambda x: F.pad(x, (1, 0), value=0.5),
    lambda x: x.flip(-1),
    lambda x: x.roll(1, -1),
    lambda x: torch.cat(x.split([1, x.shape[-1] - 1], -1)[::-1], -1),
    lambda x: torch.cat([part.sigmoid() for part in x.tensor_split(3, -1)], -1),
    lambda x: x[..., ::2],
    lambda x: x[..., None].expand(*x.shape, 2).flatten(-2),
    lambda x: x[..., 0, None] * x,
    lambda x: x.narrow(-1, 1, x.shape[-1] - 1),
    lambda x: torch.stack([value.exp() for value in x.clamp(-2, 2).unbind(-1)], -1),
    lambda x: x.transpose(1, 2).flip(1).contiguous().transpose(1, 2),
    lambda x: x.movedim(-1, 0).reshape(x.shape[-1], -1).t().reshape(x.shape),
    lambda x: x.view(-1, x.shape[-1]).unsqueeze(1).squeeze(1).unflatten(0, x.shape[:2]),
    lambda x: torch.cat([x, torch.zeros_like(x)], -1),
    lambda x: torch.cat([x, torch.ones_like(x[..., :1])], -1),
)  # fmt: skip
REDUCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.sum(-1),
    lambda x: x.mean(-1),
    lambda x: x.amax(-1),
    lambda x: x.logsumexp(-1),
    lambda x: x.var(-1),
    lambda x: x.clamp(-2, 2).prod(-1),
    lambda x: x.max(-1).values,
    lambda x: x.softmax(-1).select(-1, 0),
    lambda x: x.cumsum(-1)[..., -1],
    lambda x: x.sort(-1).values[..., 0],
    lambda x: x.nansum(-1),
    lambda x: torch.linalg.vector_norm(x, dim=-1),
    lambda x: torch.einsum("blij->bli", x),
    lambda x: torch.einsum("blij,blij->bli", x, x.tanh()),
)
INDEXING: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x[..., torch.tensor([1, 0, 2])],
    lambda x: x[torch.tensor([1, 0])],
    lambda x: x.index_select(-1, torch.tensor([2, 1])),
    lambda x: x.index_select(1, torch.arange(x.shape[1] - 1, -1, -1)),
    lambda x: x.gather(-1, x.argmax(-1, keepdim=True)) + x,
    lambda x: x.masked_fill(x > 0, 0.0),
    lambda x: x.masked_fill(x > 0, 1.0),
    lambda x: torch.where(x > 0, x, x * 0.5),
    lambda x: x.topk(2, -1).values,
    lambda x: x.scatter(-1, torch.zeros(*x.shape[:2], 1, dtype=torch.long), 0.5),
    lambda x: (x[..., :, None] * x[..., None, :]).tril().sum(-1),
    lambda x: torch.diagonal(x[..., :, None] * x[..., None, :], dim1=-2, dim2=-1),
)


def _write_part(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., :2] = 0.5
    return x


def _write_view(x: Tensor) -> Tensor:
    x = x * 1.0
    x.view(-1, x.shape[-1]).t().add_(1)
    return x.relu_()


def _write_half(x: Tensor) -> Tensor:
    x = x.clone()
    half = x.shape[-1] // 2
    x.narrow(-1, 0, half).mul_(x.narrow(-1, half, half).sigmoid())
    return x


WRITES: tuple[Callable[[Tensor], Tensor], ...] = (
    _write_part,
    _write_view,
    _write_half,
    lambda x: x.clone().transpose(1, 2).mul_(2).transpose(1, 2),
    lambda x: x.clone().index_fill_(-1, torch.tensor([1]), 0.0),
    lambda x: torch.zeros_like(x).copy_(x).clamp_(min=0),
    lambda x: x.clone().unflatten(-1, (1, -1)).tanh_().flatten(-2),
)
KINDS_AND_MORE = (*KINDS, "unary", "unary", "binary", "ternary", "move", "move", "reduce", "reduce", "index", "write",
    "conv2d", "upconv", "batchnorm", "groupnorm", "pool", "recurrent", "shared", "tied", "product", "bilinear", "heads",
    "experts", "glu", "prelu", "codebook")  # fmt: skip


class WildNet(RandomNet):
    """A RandomNet whose steps draw from many more operators."""

    def __init__(self, steps: tuple[Step, ...], seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(steps, seed)

    def module(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The next module; made on the first run."""
        if self._shapes:
            self.layers.append(make())
        self._next += 1
        return self.layers[self._next - 1]

    def _unary(self, values: list[Tensor], number: int) -> Tensor:
        return _pointwise(TABLE[1][number % len(TABLE[1])], values[-1])

    def _other(self, values: list[Tensor], number: int) -> Tensor:
        x, other = values[-1], values[number % len(values)]
        return other if other.shape == x.shape else self.layer(x.shape[-1], x.shape[-1])(x)

    def _binary(self, values: list[Tensor], number: int) -> Tensor:
        pair = (values[-1], self._other(values, number // 7))
        return _pointwise(TABLE[2][number % len(TABLE[2])], *pair[:: -1 if number % 2 else 1])

    def _ternary(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        third = self.layer(x.shape[-1], x.shape[-1])(x)
        return _pointwise(TABLE[3][number % len(TABLE[3])], x, self._other(values, number), third)

    def _move(self, values: list[Tensor], number: int) -> Tensor:
        x = MOVES[number % len(MOVES)](values[-1]) if values[-1].shape[-1] > 2 else values[-1]
        return x if x.shape[-1] <= WIDEST else x[..., :WIDEST]

    def _reduce(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        if number % 3 == 0:
            return x + REDUCTIONS[number % len(REDUCTIONS)](x[..., None, :])
        wide = self.layer(x.shape[-1], 12)(x).unflatten(-1, (4, 3) if number % 2 else (3, 4))
        return REDUCTIONS[number % len(REDUCTIONS)](wide if number % 5 else wide.transpose(-1, -2))

    def _index(self, values: list[Tensor], number: int) -> Tensor:
        return INDEXING[number % len(INDEXING)](values[-1]) if values[-1].shape[-1] > 2 else values[-1]

    def _write(self, values: list[Tensor], number: int) -> Tensor:
        return WRITES[number % len(WRITES)](values[-1]) if values[-1].shape[-1] > 2 else values[-1]

    def _channels(self, values: list[Tensor], make: Callable[[int], nn.Module]) -> Tensor:
        return self.module(lambda: make(values[-1].shape[-1]))(values[-1].transpose(1, 2)).transpose(1, 2)

    def _conv2d(self, values: list[Tensor], number: int) -> Tensor:
        groups = 2 if number % 2 and _even(values[-1]) else 1
        square = values[-1].transpose(1, 2)[..., None].expand(-1, -1, -1, 3)
        conv = self.module(lambda: nn.Conv2d(square.shape[1], 6, 3, padding=1, groups=groups))
        return conv(square).flatten(2)[..., : values[-1].shape[1]].transpose(1, 2)

    def _upconv(self, values: list[Tensor], number: int) -> Tensor:
        return self._channels(values, lambda n: nn.ConvTranspose1d(n, 6, 3, padding=1, bias=number % 2 == 0))

    def _batchnorm(self, values: list[Tensor], number: int) -> Tensor:
        return self._channels(
            values, nn.BatchNorm1d if number % 2 else partial(nn.InstanceNorm1d, affine=True)
        )

    def _groupnorm(self, values: list[Tensor], number: int) -> Tensor:
        return self._channels(values, lambda n: nn.GroupNorm((1, 2, n)[number % 3] if n % 2 == 0 else 1, n))

    def _pool(self, values: list[Tensor], number: int) -> Tensor:
        pools = (nn.AvgPool1d(3, 1, 1), nn.MaxPool1d(3, 1, 1), nn.LPPool1d(2, 1, 1), nn.Upsample(5))
        return self._channels(values, lambda _: pools[number % 4])

    def _recurrent(self, values: list[Tensor], number: int) -> Tensor:
        kind = (nn.LSTM, nn.GRU, nn.RNN)[number % 3]
        cell: Any = self.module(
            lambda: kind(
                values[-1].shape[-1], 4, 1 + number % 2, batch_first=True, bidirectional=number % 5 < 2
            )
        )
        return cell(values[-1])[0]

    def _shared(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        layer = self.layer(x.shape[-1], x.shape[-1])
        return layer(layer(x).relu()) if number % 2 else layer(x).tanh() * layer(x.sin())

    def _tied(self, values: list[Tensor], number: int) -> Tensor:
        weight = self._parameter(5, values[-1].shape[-1]) * 0.3
        return F.linear(F.linear(values[-1], weight).relu(), weight.t()) + (values[-1] if number % 2 else 0)

    def _product(self, values: list[Tensor], number: int) -> Tensor:
        first, second = self._parameter(values[-1].shape[-1], 3), self._parameter(3, 4)
        if number % 3 == 0:
            return torch.einsum("bli,ij,jk->blk", values[-1], first, second)
        return values[-1] @ (first @ second) if number % 3 == 1 else (values[-1] @ first).relu() @ second

    def _bilinear(self, values: list[Tensor], number: int) -> Tensor:
        x, other = values[-1], values[number % len(values)]
        return self.module(lambda: nn.Bilinear(x.shape[-1], other.shape[-1], 4, number % 2 == 0))(
            x, other[: x.shape[0], : x.shape[1]]
        )

    def _heads(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        q = self.layer(x.shape[-1], 12)(x).unflatten(-1, (4, 3)).transpose(1, 2)
        k = self.layer(x.shape[-1], 6)(x).unflatten(-1, (2, 3)).transpose(1, 2)
        v = self.layer(x.shape[-1], 4)(x).unflatten(-1, (2, 2)).transpose(1, 2)
        if number % 2:
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
            out = (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v
        return out.transpose(1, 2).flatten(2)

    def _experts(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        up, down = self._parameter(3, x.shape[-1], 4), self._parameter(3, 4, x.shape[-1])
        hidden = torch.einsum("bli,eio->ebl o".replace(" ", ""), x, up).relu()
        outs = torch.einsum("eblo,eoi->ebli", hidden, down)
        gates = self.layer(x.shape[-1], 3)(x).softmax(-1)
        return (outs * gates.movedim(-1, 0)[..., None]).sum(0)

    def _glu(self, values: list[Tensor], number: int) -> Tensor:
        return F.glu(self.layer(values[-1].shape[-1], 8)(values[-1]), -1)

    def _prelu(self, values: list[Tensor], number: int) -> Tensor:
        return self._channels(values, lambda n: nn.PReLU(n if number % 2 else 1))

    def _codebook(self, values: list[Tensor], number: int) -> Tensor:
        table = self._parameter(7, values[-1].shape[-1])
        return F.embedding(torch.arange(values[-1].shape[1]) % 7, table) + values[-1]


def wild(seed: int, longest: int = 8) -> WildNet:
    """The net of a seed, in float64."""
    draw = random.Random(seed)
    count = draw.randint(1, longest)
    steps = tuple(Step(draw.choice(KINDS_AND_MORE), draw.randrange(1000)) for _ in range(count))
    return WildNet(steps, seed).double().eval()


assert INTO > 2  # the operators of MOVES take at least three places
