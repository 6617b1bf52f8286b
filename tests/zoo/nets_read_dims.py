# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Hand-written nets with operators that read some of their dims only: windows, masks, kernels of size 1, orders that can follow."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zoo.nets_attention import pixels
from zoo.nets_dense import BATCH, LENGTH, Inputs, features, sequence


class WindowedAttention(nn.Module):
    """Local attention: keys and values of a window around each query, by `Tensor.unfold` along the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (
            nn.Linear(6, 8),
            nn.Linear(6, 8),
            nn.Linear(6, 12),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        k, v = (F.pad(layer(x), (0, 0, 1, 1)).unfold(1, 3, 1) for layer in (self.k, self.v))
        scores = (self.q(x)[..., None] * k).sum(2) * 0.3
        return self.out((scores.softmax(-1)[:, :, None] * v).sum(-1))


class OverlappingAttention(nn.Module):
    """Attention between windows and larger windows that overlap, cut out by `nn.Unfold` (HAT)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Conv2d(2, 8, 1), nn.Conv2d(2, 16, 1), nn.Linear(8, 5)
        self.windows, self.wide = nn.Unfold(2, stride=2), nn.Unfold(4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        q = self.windows(self.q(x)).unflatten(1, (2, 4, 4)).permute(0, 4, 1, 3, 2)
        kv = self.wide(self.kv(x)).unflatten(1, (2, 2, 4, 16)).permute(1, 0, 5, 2, 4, 3)
        mixed = F.scaled_dot_product_attention(q, kv[0], kv[1])
        return self.out(mixed.transpose(2, 3).flatten(3))


class FoldedPatches(nn.Module):
    """A layer on patches that `unfold` cuts out and `fold` puts together."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix, self.down = nn.Conv2d(2, 8, 1), nn.Linear(8, 12), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(self.up(x), 2, stride=2).unflatten(1, (8, 4))
        mixed = self.mix(patches.movedim(1, -1)).movedim(-1, 1).relu()
        return self.down(F.fold(mixed.flatten(1, 2), x.shape[-2:], 2, stride=2))


class MaskedNodes(nn.Module):
    """Dense batches of graphs: nodes are read and written where a mask is (GPS, Graphormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = (
            nn.Linear(6, 8),
            nn.Linear(8, 12),
            nn.Linear(12, 8),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.stem(x)
        nodes = h[mask]
        nodes = nodes + self.down(self.up(nodes).relu())
        dense = torch.zeros_like(h)
        dense[mask] = nodes
        return self.head(dense)


class GraphSum(nn.Module):
    """Messages along edges, added up at the nodes by `index_add` and by `scatter_add` (GIN)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        h = self.a(x).relu()
        h = self.b(h + torch.zeros_like(h).index_add(0, target, h[source])).relu()
        messages = h.index_select(0, source)
        return self.c(h + torch.zeros_like(h).scatter_add(0, target[:, None].expand_as(messages), messages))


class AlongTime(nn.Module):
    """Kernels of size (3, 1) and pools of (2, 1) over time × features: the features are not read across."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.conv, self.down = (
            nn.Linear(6, 8),
            nn.Conv2d(1, 4, (3, 1), padding=(1, 0)),
            nn.Linear(8, 5),
        )
        self.back = nn.ConvTranspose2d(4, 3, (2, 1), stride=(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.up(x)[:, None]).relu()
        h = self.back(F.max_pool2d(h, (2, 1)))
        return self.down(F.adaptive_avg_pool2d(h, (1, None)).mean(1).squeeze(1))


class OneChunk(nn.Module):
    """Lists of one part, of sizes that may be symbolic."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([part.relu() for part in self.up(x).chunk(1, dim=1)], 1)
        parts = h.flatten(1).chunk(1, dim=1)
        return self.down(parts[0].unflatten(1, (x.shape[1], 8)))


class MemoryTokens(nn.Module):
    """Learned memory beside the keys and values; the memory may shrink, inexactly, for the shares of the others change."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(6, 8), nn.Linear(6, 16), nn.Linear(8, 5)
        self.keys, self.values = nn.Parameter(torch.randn(2, 4, 4)), nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q(x), *self.kv(x).chunk(2, -1))
        )
        k, v = (
            torch.cat([m.expand(x.shape[0], -1, -1, -1), y], 2) for m, y in ((self.keys, k), (self.values, v))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FlippedFlow(nn.Module):
    """Coupling layers with flips of the channels between them (Glow, VITS)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.up = nn.ModuleList([nn.Linear(8, 12) for _ in range(4)])
        self.down = nn.ModuleList([nn.Linear(12, 8) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for up, down in zip(self.up, self.down, strict=True):
            a, b = h.chunk(2, -1)
            h = torch.cat([a, b + down(up(a).relu())], -1).flip(-1)
        return self.head(h)


class Rolled(nn.Module):
    """Features that are rolled by a shift (S²-MLP), and others tied to their own shift."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 5)
        self.more, self.last = nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h, g = self.up(x).relu(), self.more(x).relu()
        return self.down(h.roll(4, -1)) + self.last(g + g.roll(-3, -1))


class UnrolledNeurons(nn.Module):
    """Neurons that a loop takes one by one and stacks, in their order and in reverse."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.side, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h, g = self.up(x), self.side(x)
        ahead = torch.stack([h[..., i].relu() for i in range(8)], -1)
        back = torch.stack([value.tanh() * 2 for value in reversed(g.unbind(-1))], -1)
        return self.down(ahead + back)


class FeatureSoftmax(nn.Module):
    """Softmax over features (linear attention) and over channels: the shares of the others change, so it is inexact."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (
            nn.Linear(6, 8),
            nn.Linear(6, 8),
            nn.Linear(6, 12),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).unflatten(-1, (2, 4)).softmax(-1) for layer in (self.q, self.k))
        v = self.v(x).unflatten(-1, (2, 6))
        context = torch.einsum("bnhd,bnhe->bhde", k, v)
        return self.out(torch.einsum("bnhd,bhde->bnhe", q, context).flatten(2))


class LoopedMixture(nn.Module):
    """A mixture in plain loops: `torch.where(mask)` gives the tokens of each expert."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 5)
        self.up = nn.ModuleList([nn.Linear(8, 12) for _ in range(3)])
        self.down = nn.ModuleList([nn.Linear(12, 8) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        weights, ids = self.router(h).softmax(-1).topk(2, -1)
        y = torch.zeros_like(h)
        for expert in range(3):
            rows, place = torch.where(ids == expert)
            out = self.down[expert](self.up[expert](h[rows]).relu())
            y = y.index_add(0, rows, out * weights[rows, place, None])
        return self.head(y)


class StraddlingNorm(nn.Module):
    """Groups that straddle the border of a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.down = nn.Conv2d(2, 10, 1), nn.Conv2d(2, 26, 1), nn.Conv2d(36, 5, 1)
        self.norm = nn.GroupNorm(12, 36)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())


class ImageTokens(nn.Module):
    """Features of images, put where a mask over the tokens is (LLaVA)."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.text(x)
        return self.head(h.masked_scatter(mask[..., None].expand_as(h), self.image(x.tanh())).relu())


def masked() -> Inputs:
    mask = torch.arange(LENGTH)[None] < torch.tensor([[13], [5], [8]])
    return {**sequence(), "mask": mask}


def graph() -> Inputs:
    return {"x": torch.randn(LENGTH, 6), "edges": torch.randint(0, LENGTH, (2, 21))}


READ_DIMS = {
    "windowed-attention": lambda: (WindowedAttention(), sequence()),
    "overlapping-attention": lambda: (OverlappingAttention(), pixels()),
    "folded-patches": lambda: (FoldedPatches(), pixels()),
    "masked-nodes": lambda: (MaskedNodes(), masked()),
    "image-tokens": lambda: (ImageTokens(), masked()),
    "graph-sum": lambda: (GraphSum(), graph()),
    "along-time": lambda: (AlongTime(), sequence()),
    "one-chunk": lambda: (OneChunk(), sequence()),
    "memory-tokens": lambda: (MemoryTokens(), sequence()),
    "flipped-flow": lambda: (FlippedFlow(), features()),
    "rolled": lambda: (Rolled(), features()),
    "unrolled-neurons": lambda: (UnrolledNeurons(), features()),
    "feature-softmax": lambda: (FeatureSoftmax(), sequence()),
    "looped-mixture": lambda: (LoopedMixture(), {"x": torch.randn(BATCH * LENGTH, 6)}),
    "straddling-norm": lambda: (StraddlingNorm(), pixels()),
}
