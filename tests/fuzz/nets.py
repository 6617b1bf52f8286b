# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Random nets for the fuzzer: every operator of the rule table on a bench of its own, and the families that `strategies` does not have.

Each fourth net is drawn by chance, a chain of steps where operators meet. The others are dealt: the rows of the table, the pointwise
operators and the cases of the laws about zeros lie in shuffled decks, and the seeds deal them in turn, so that a hundred nets in a row have
had each common operator twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fuzz.bench import READERS, SILENT, Bench
from fuzz.calls import ROWS
from fuzz.pointwise import BENCH, TABLE, pointwise
from fuzz.zero_laws import CASES, case, expression
from support.strategies import INTO, KINDS, RandomNet, Step

aten = torch.ops.aten
WIDEST = 24
#: (number of operands, pointwise operator)
POINTS = [(count, packet) for count, packets in BENCH.items() for packet in packets]


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


@contextmanager
def _in_double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class WildNet(RandomNet):
    """RandomNet with steps from many more operators."""

    def __init__(self, steps: tuple[Step, ...], seed: int) -> None:
        with torch.random.fork_rng(), _in_double():
            torch.manual_seed(seed)
            self._weights: list[int] = []
            super().__init__(steps, seed)

    def _run(self, x: Tensor) -> Tensor:
        self._made = 0
        return super()._run(x)

    def weight(self, *sizes: int) -> Tensor:
        """The next parameter of a bench; made on the first run."""
        if self._shapes:
            self.scalars.append(nn.Parameter(torch.randn(sizes, generator=self._generator)))
            self._weights.append(len(self.scalars) - 1)
        self._made += 1
        return self.scalars[self._weights[self._made - 1]]

    def _row(self, values: list[Tensor], number: int) -> Tensor:
        names, call = ROWS[number % len(ROWS)]
        bench = Bench(self, values[-1], number)
        first, *others = names.split()
        name = bench.pick(*others) if others and bench.draw.random() < 0.3 else first
        return values[-1] + bench.read(call(getattr(aten, name), bench))

    def _point(self, values: list[Tensor], number: int) -> Tensor:
        count, packet = POINTS[number % len(POINTS)]
        bench = Bench(self, values[-1], number)
        result = pointwise(packet, *(bench(3, 4) for _ in range(count)))
        return values[-1] + bench.read(result, bench.pick(SILENT, READERS))

    def _case(self, values: list[Tensor], number: int) -> Tensor:
        return values[-1] + case(Bench(self, values[-1], number), number)

    def _law(self, values: list[Tensor], number: int) -> Tensor:
        return values[-1] + expression(Bench(self, values[-1], number))

    def module(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The next module; made on the first run."""
        if self._shapes:
            self.layers.append(make())
        self._next += 1
        return self.layers[self._next - 1]

    def _unary(self, values: list[Tensor], number: int) -> Tensor:
        return pointwise(TABLE[1][number % len(TABLE[1])], values[-1])

    def _other(self, values: list[Tensor], number: int) -> Tensor:
        x, other = values[-1], values[number % len(values)]
        return other if other.shape == x.shape else self.layer(x.shape[-1], x.shape[-1])(x)

    def _binary(self, values: list[Tensor], number: int) -> Tensor:
        pair = (values[-1], self._other(values, number // 7))
        return pointwise(TABLE[2][number % len(TABLE[2])], *pair[:: -1 if number % 2 else 1])

    def _ternary(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        third = self.layer(x.shape[-1], x.shape[-1])(x)
        return pointwise(TABLE[3][number % len(TABLE[3])], x, self._other(values, number), third)

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


#: numbers of dealt steps in each net, by kind
DEALT = {"row": 5, "point": 1, "case": 3}
DECKS = {"row": len(ROWS), "point": len(POINTS), "case": len(CASES)}


@cache
def _deck(kind: str, turn: int) -> list[int]:
    cards = list(range(DECKS[kind]))
    random.Random(f"{kind} {turn}").shuffle(cards)
    return cards


def _dealt(kind: str, place: int, draw: random.Random) -> list[Step]:
    """The cards of a deck for one net; the number of a step encodes its variation too."""
    size, count = DECKS[kind], DEALT[kind]
    cards = [_deck(kind, card // size)[card % size] for card in range(place * count, (place + 1) * count)]
    return [Step(kind, card + size * draw.randrange(1000)) for card in cards]


def _chance(draw: random.Random, longest: int) -> list[Step]:
    steps = [Step(draw.choice(KINDS_AND_MORE), draw.randrange(1000)) for _ in range(draw.randint(1, longest))]
    return [*steps, Step("law", draw.randrange(1000000))]


def wild(seed: int, longest: int = 6) -> WildNet:
    """The net of a seed, in float64: each fourth one by chance, where operators meet, the others dealt."""
    draw = random.Random(seed)
    turn, by_chance = divmod(seed, 4)
    steps = (
        _chance(draw, longest)
        if by_chance == 3
        else [step for kind in DEALT for step in _dealt(kind, 3 * turn + by_chance, draw)]
    )
    draw.shuffle(steps)
    return WildNet(tuple(steps), seed).double().eval()


assert INTO > 2  # the operators of MOVES take at least three places
