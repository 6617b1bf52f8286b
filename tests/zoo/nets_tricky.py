# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Hand-written nets that are easy to get wrong: parametrised weights, one axis at two places, broadcast scalars, writes in place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zoo.nets_dense import BATCH, features, tokens


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.utils.parametrizations.weight_norm(nn.Linear(6, 16))
        self.down = nn.utils.parametrizations.weight_norm(nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class SpectralNorm(nn.Module):
    """Spectral normalisation, in double precision: the norm of random weights may nearly cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 16))
        self.down = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class InputConvex(nn.Module):
    """Positive square weights on a residual stream: a zero input does not make the result zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.square, self.head = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + F.linear(h.relu(), self.square.exp())
        return F.linear(h, self.head.exp())


class PairwiseSum(nn.Module):
    """The same axis at two places of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return (h[:, :, None] + h[:, None, :]).relu().sum(-1).sum(-1, keepdim=True)


class OuterProduct(nn.Module):
    """Second-order pooling: features times features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 4), nn.Linear(6, 8), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.head((a[:, :, None] * b[:, None, :]).flatten(1))


class Broadcast(nn.Module):
    """A scalar that is broadcast over the units: removed units lose it too, which zeros of weights do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.shift = nn.Linear(6, 8), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        return (h + self.shift.expand_as(h)).sum(-1, keepdim=True)


class ActivationZoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList([nn.Linear(6, 8) for _ in range(8)])
        self.prelu, self.head = nn.PReLU(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f, g, h = (up(x) for up in self.up)
        y = F.hardswish(a) + F.elu(b) * F.softplus(c) + F.leaky_relu(d).clamp(-1, 1)
        return self.head(self.prelu(y) + F.mish(e) * torch.where(f > 0, g, h) + F.hardtanh(h))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.side, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h.relu_().mul_(2).add_(self.side(x))
        return self.down(h)


class InPlaceThroughViews(nn.Module):
    """A write that shows in a view of a view, and one through dropout, whose result is its operand in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        turned = h.view(BATCH, 2, 4).transpose(1, 2)
        h.add_(1)
        dropped = F.dropout(h, 0.5, training=False)
        dropped.relu_()
        return self.down(h + turned.transpose(1, 2).reshape(BATCH, 8))


class SliceWrite(nn.Module):
    """A result that is put together by writing into slices of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.down = nn.Linear(6, 4), nn.Linear(6, 6), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], 10)
        y[:, :4] = self.a(x)
        y[:, 4:] = self.b(x).relu()
        return self.down(y)


class DividedBySilence(nn.Module):
    """A value that zeros would silence is a divisor, too: 0 · (0 / 0) is not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return (h / (h + 3 * h.sign()) * h).sum(dim=-1, keepdim=True)


class Strides(nn.Module):
    """A view by strides, which depends on the memory layout that cutting changes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return self.down(torch.ops.aten._reshape_alias(h, [h.shape[0], 3, 4], [12, 4, 1]).sum(dim=-1))


class LearnedSteps(nn.Module):
    """A recurrent net whose steps come from a layer, and whose initial state is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.start = nn.Linear(6, 15), nn.Parameter(torch.randn(1, 1, 7))
        self.recurrent, self.down = nn.GRU(3, 7, batch_first=True), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = self.start.expand(-1, x.shape[0], -1).contiguous()
        return self.down(self.recurrent(self.up(x).unflatten(-1, (5, 3)), state)[0][:, -1])


class StackedSteps(nn.Module):
    """Three recurrent layers, of which the last one's output and last state leave the net."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(6, 10, 3, batch_first=True, dropout=0.2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        steps, (last, _) = self.recurrent(x[:, None] * torch.arange(1, 5)[:, None])
        return steps, last[-1]


class CrossedGroups(nn.Module):
    """Convolutions of 4 and then 6 groups: blocks of 2 within both, and blocks of 12 that contain both, can go."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv1d(6, 24, 1), nn.Conv1d(24, 5, 1)
        self.four = nn.Conv1d(24, 24, 3, padding=1, groups=4)
        self.six = nn.Conv1d(24, 24, 3, padding=1, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        steps = x[..., None] * torch.arange(1, 6)
        return self.down(self.six(self.four(self.up(steps)).relu()).relu())


class Repeats(nn.Module):
    """Rows that are repeated as often as a tensor says: their features stay an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 5)
        self.register_buffer("times", torch.tensor([1, 3, 2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).repeat_interleave(self.times, dim=0).relu())


class ScoredTokens(nn.Module):
    """A transformer whose results are scored by the embeddings of its own tokens, as recommenders do."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(19, 8)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(8, 8) for name in "qkvo"}) for _ in range(2)
        )

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.items(ids)
        x = rows * 3
        for layer in self.layers:
            parts: Any = layer
            heads = [parts[name](x).unflatten(-1, (2, 4)).transpose(1, 2) for name in "qkv"]
            x = x + parts["o"](F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return torch.bmm(x, rows.transpose(1, 2))


class ShuffledByIndex(nn.Module):
    """ShuffleNet's exchange of channels written as a list of positions, between two grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Linear(6, 12), nn.Conv1d(12, 16, 1, groups=2)
        self.norm, self.two = nn.BatchNorm1d(16), nn.Conv1d(16, 24, 1, groups=2)
        self.down = nn.Linear(24, 5)
        self.register_buffer("order", torch.arange(16).view(2, 8).T.flatten())

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.up(self.stem(x)[:, :, None])).relu().index_select(1, self.order)
        return self.down(self.two(h)[..., 0])


class Reordered(nn.Module):
    """Layers between fixed orders of their features, one of which is used twice; the last is taken apart and laid out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(4, 5)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.orders = [torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in (1, 2, 1)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for layer, order in zip(self.layers, self.orders, strict=True):
            h = layer(h[:, order].relu())
        a, b = h[:, self.orders[1]].chunk(2, dim=-1)
        return self.head((a * b.tanh() + self.gate(x)).view(-1, 2, 4).sin().sum(1))


TRICKY = {
    "divided-by-silence": lambda: (DividedBySilence(), features()),
    "strides": lambda: (Strides(), features()),
    "learned-steps": lambda: (LearnedSteps(), features()),
    "stacked-steps": lambda: (StackedSteps(), features()),
    "shuffled-by-index": lambda: (ShuffledByIndex(), features()),
    "reordered": lambda: (Reordered(), features()),
    "crossed-groups": lambda: (CrossedGroups(), features()),
    "repeats": lambda: (Repeats(), features()),
    "scored-tokens": lambda: (ScoredTokens(), tokens()),
    "weight-norm": lambda: (WeightNorm(), features()),
    "spectral-norm": lambda: (SpectralNorm().double(), {"x": features()["x"].double()}),
    "input-convex": lambda: (InputConvex(), features()),
    "pairwise-sum": lambda: (PairwiseSum(), features()),
    "outer-product": lambda: (OuterProduct(), features()),
    "broadcast": lambda: (Broadcast(), features()),
    "activations": lambda: (ActivationZoo(), features()),
    "in-place": lambda: (InPlace(), features()),
    "in-place-views": lambda: (InPlaceThroughViews(), features()),
    "slice-write": lambda: (SliceWrite(), features()),
}
