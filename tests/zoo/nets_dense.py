# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Hand-written nets of dense layers: residual and gated feed-forward nets, mixtures, parametrisations, shared weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Inputs = dict[str, Any]
BATCH, LENGTH = 3, 13


def features(width: int = 6) -> Inputs:
    return {"x": torch.randn(BATCH, width)}


def sequence(width: int = 6) -> Inputs:
    return {"x": torch.randn(BATCH, LENGTH, width)}


def tokens(vocabulary: int = 19) -> Inputs:
    return {"ids": torch.randint(0, vocabulary, (BATCH, LENGTH))}


class Mlp(nn.Module):
    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 5)
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class ResidualMlp(nn.Module):
    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
        self.up = nn.ModuleList([nn.Linear(8, 16) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(16, 8) for _ in range(2)])
        self.norm = nn.ModuleList([nn.LayerNorm(8) if norm else nn.Identity() for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down, norm in zip(self.up, self.down, self.norm, strict=True):
            x = x + down(F.gelu(up(norm(x))))
        return self.head(x)


class GatedFfn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 16), nn.Linear(6, 16, bias=False), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class FusedGate(nn.Module):
    """Gate and value from one product, cut by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(6, 32), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * value)


class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(6, 32), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.glu(self.both(x)))


class SpatialGate(nn.Module):
    """Tokens mixed by a convolution of one point whose channels are the tokens and whose places are the features (gMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.mix, self.down = nn.Linear(6, 32), nn.Conv1d(LENGTH, LENGTH, 1), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = F.gelu(self.both(x)).chunk(2, dim=-1)
        return x + self.down(value * self.mix(gate))


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).unflatten(-1, (8, 3)).amax(-1))


class Experts(nn.Module):
    """Two stacked experts, chosen softly."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 8)), nn.Parameter(torch.randn(4, 8, 6))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        hidden = torch.einsum("bi,eih->beh", x, self.up).relu()
        return torch.einsum("be,beo->bo", weights, torch.einsum("beh,eho->beo", hidden, self.down))


class TopExperts(nn.Module):
    """The best expert by gather, as routers do."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 8)), nn.Parameter(torch.randn(4, 8, 6))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(1, dim=-1)
        up, down = self.up[chosen[:, 0]], self.down[chosen[:, 0]]
        return weight * torch.bmm(torch.bmm(x[:, None], up).relu(), down)[:, 0]


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 4)
        self.mix, self.head = nn.Bilinear(8, 4, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.left(x), self.right(x)).tanh())


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4, 16))
        self.bias, self.head = nn.Parameter(torch.randn(16)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.addmm(self.bias, x, self.a @ self.b).relu())


class Lora(nn.Module):
    """A frozen layer and its low-rank update."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.a, self.b = nn.Linear(6, 4, bias=False), nn.Linear(4, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.base(x) + 0.5 * self.b(self.a(x))).relu())


class TiedLm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(19, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 19, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        return self.head(h + self.down(self.up(h).relu()))


class SharedLayer(nn.Module):
    """One layer, applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(3):
            h = h + self.down(self.up(h).tanh())
        return self.head(h)


class Permuted(nn.Module):
    """Views, permutations and flattening of a product of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(6, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).view(-1, 2, 3, 4).permute(0, 3, 1, 2).relu()
        return self.head(y.flatten(2).flatten(1))


class Slices(nn.Module):
    """Slices, a stride and single positions of one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.a, self.b = nn.Linear(6, 12), nn.Linear(5, 4), nn.Linear(6, 4)
        self.c, self.d = nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        return self.d(self.a(h[:, :5]) + self.b(h[:, ::2]) * h[:, -1:] + self.c(h.narrow(1, 3, 6)))


class Embeddings(nn.Module):
    """Words, positions and types, joined and projected."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(19, 8), nn.Embedding(32, 8)
        self.kind, self.head = nn.Embedding(2, 4), nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        h = self.word(ids) + self.place(places)
        return self.head(torch.cat([h, self.kind(ids % 2)], dim=-1))


class Bags(nn.Module):
    """Rows pooled in bags: their mean, and the largest of each dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.largest = nn.EmbeddingBag(20, 12), nn.EmbeddingBag(20, 8, mode="max")
        self.head = nn.Linear(20, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.cat([self.mean(ids), self.largest(ids)], dim=-1))


class Fft(nn.Module):
    """FNet's mixing over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(6, 8), nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.fft.fft(self.up(x), dim=1).real
        return self.down(self.mid(mixed).relu())


class Scatter(nn.Module):
    """Message passing: edge messages are summed at their targets."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(6, 8), nn.Linear(8, 5)
        self.register_buffer("source", torch.tensor([0, 1, 2, 3, 4]))
        self.register_buffer("target", torch.tensor([1, 1, 0, 4, 2]))

    def forward(self, x: Tensor) -> Tensor:
        messages = self.message(x).relu()[:, self.get_buffer("source")]
        gathered = torch.zeros_like(messages).index_add(1, self.get_buffer("target"), messages)
        return self.update(gathered)


class Cosine(nn.Module):
    """A classifier on normalised features."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.classes = nn.Linear(6, 16), nn.Linear(16, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = F.normalize(self.mid(self.up(x).relu()), dim=-1)
        return h @ F.normalize(self.classes, dim=-1).t()


class Rms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.up, self.down = (
            nn.Linear(6, 8),
            nn.RMSNorm(8),
            nn.Linear(8, 16),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(self.norm(self.stem(x))).relu().square())


class Film(nn.Module):
    """Features scaled and shifted by a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.condition, self.up, self.down = nn.Linear(6, 32), nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.condition(x).split(16, dim=-1)
        return self.down(self.up(x) * (1 + scale) + shift)


class Hyper(nn.Module):
    """The weight of a layer computed from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.up, self.down = nn.Linear(6, 32), nn.Linear(6, 8), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weights(x).view(-1, 4, 8)
        return self.down(torch.bmm(weight, self.up(x).unsqueeze(2)).squeeze(2).tanh())


DENSE = {
    "mlp": lambda: (Mlp(), features()),
    "mlp-sigmoid": lambda: (Mlp(nn.Sigmoid()), features()),
    "residual-mlp": lambda: (ResidualMlp(), features()),
    "residual-mlp-norm": lambda: (ResidualMlp(norm=True), features()),
    "gated-ffn": lambda: (GatedFfn(), features()),
    "fused-gate": lambda: (FusedGate(), features()),
    "glu": lambda: (Glu(), features()),
    "spatial-gate": lambda: (SpatialGate(), sequence()),
    "maxout": lambda: (Maxout(), features()),
    "experts": lambda: (Experts(), features()),
    "top-experts": lambda: (TopExperts(), features()),
    "bilinear": lambda: (Bilinear(), features()),
    "low-rank": lambda: (LowRank(), features()),
    "lora": lambda: (Lora(), features()),
    "tied-lm": lambda: (TiedLm(), tokens()),
    "shared-layer": lambda: (SharedLayer(), features()),
    "permuted": lambda: (Permuted(), features()),
    "slices": lambda: (Slices(), features()),
    "embeddings": lambda: (Embeddings(), tokens()),
    "bags": lambda: (Bags(), tokens()),
    "fft": lambda: (Fft(), sequence()),
    "scatter": lambda: (Scatter(), sequence()),
    "cosine": lambda: (Cosine(), features()),
    "rms": lambda: (Rms(), features()),
    "film": lambda: (Film(), features()),
    "hyper": lambda: (Hyper(), features()),
}
