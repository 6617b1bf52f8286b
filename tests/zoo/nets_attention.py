# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Hand-written attention: fused and stacked qkv, grouped queries, rotary, relative bias, linear attention, cross-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zoo.nets_dense import BATCH, LENGTH, Inputs, sequence, tokens

HEADS, SIZE, WIDTH = 4, 4, 16


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    """[batch, length, width] → [batch, heads, length, size]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Scores written out: scale, mask, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads(self.q(x)), heads(self.k(x)), heads(self.v(x))
        scores = q @ k.transpose(-2, -1) / SIZE**0.5
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return x + self.o(merged(scores.masked_fill(hidden, -1e4).softmax(-1) @ v))


class StackedQkv(nn.Module):
    """One product for q, k and v, viewed as (3, heads, size)."""

    def __init__(self, unbind: bool = True) -> None:
        super().__init__()
        self.qkv, self.o, self.unbind = nn.Linear(6, 3 * WIDTH), nn.Linear(WIDTH, 6), unbind

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).view(x.shape[0], x.shape[1], 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0) if self.unbind else (qkv[0], qkv[1], qkv[2])
        return x + self.o(merged(F.scaled_dot_product_attention(q, k, v)))


class SplitQkv(nn.Module):
    """One product for q, k and v, cut in three; values are wider than queries."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(6, 2 * WIDTH + 24), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([WIDTH, WIDTH, 24], dim=-1)
        return x + self.o(
            merged(F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True))
        )


class InterleavedQkv(nn.Module):
    """q, k and v interleaved per head, as GPT-NeoX and Bloom have it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(6, 3 * WIDTH), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], HEADS, 3 * SIZE).transpose(1, 2).chunk(3, dim=-1)
        return x + self.o(merged(F.scaled_dot_product_attention(q, k, v)))


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Linear(6, WIDTH), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h + self.attention(h, h, h, need_weights=False)[0])


class TorchEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, norm_first=True)
        self.stem, self.layers = (
            nn.Linear(6, WIDTH),
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.stem(x))


def rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


class Rotary(nn.Module):
    """Grouped queries with rotary positions, written out as in Llama."""

    def __init__(self, kv: int = 2) -> None:
        super().__init__()
        self.kv = kv
        self.q, self.k, self.v = nn.Linear(6, WIDTH), nn.Linear(6, kv * SIZE), nn.Linear(6, kv * SIZE)
        self.o = nn.Linear(WIDTH, 6)
        self.register_buffer("frequency", 1.0 / 10000 ** (torch.arange(0, SIZE, 2) / SIZE))

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])[:, None] * self.get_buffer("frequency")[None]
        angles = torch.cat([places, places], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        q, k, v = heads(self.q(x)), heads(self.k(x), self.kv), heads(self.v(x), self.kv)
        q, k = q * cos + rotated(q) * sin, k * cos + rotated(k) * sin
        k, v = (y.repeat_interleave(HEADS // self.kv, dim=1) for y in (k, v))
        return x + self.o(merged(F.scaled_dot_product_attention(q, k, v, is_causal=True)))


class ComplexRotary(nn.Module):
    """Rotary positions as complex products."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, 6)
        angles = torch.arange(LENGTH)[:, None] / 100 ** (torch.arange(0, SIZE, 2) / SIZE)
        self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles))

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.get_buffer("turn")).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.turned(heads(self.q(x))), self.turned(heads(self.k(x))), heads(self.v(x))
        return x + self.o(merged(F.scaled_dot_product_attention(q, k, v)))


class GroupedFlag(nn.Module):
    """Grouped queries by SDPA's own flag."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, WIDTH), nn.Linear(6, 2 * SIZE), nn.Linear(6, 2 * SIZE)
        self.o = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads(self.q(x)), heads(self.k(x), 2), heads(self.v(x), 2)
        return x + self.o(merged(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


class MultiQuery(nn.Module):
    """One key and value for all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(6, WIDTH), nn.Linear(6, 2 * SIZE), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).unsqueeze(1).split(SIZE, dim=-1)
        q = heads(self.q(x))
        return x + self.o(merged(F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q))))


class ExpandedKv(nn.Module):
    """Grouped queries by expand and reshape, as Hugging Face's repeat_kv does."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, WIDTH), nn.Linear(6, 2 * SIZE), nn.Linear(6, 2 * SIZE)
        self.o = nn.Linear(WIDTH, 6)

    @staticmethod
    def repeated(x: Tensor) -> Tensor:
        batch, kv, length, size = x.shape
        return x[:, :, None].expand(batch, kv, 2, length, size).reshape(batch, kv * 2, length, size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads(self.q(x)), heads(self.k(x), 2), heads(self.v(x), 2)
        scores = q @ self.repeated(k).transpose(2, 3) * SIZE**-0.5
        return x + self.o(merged(scores.softmax(-1) @ self.repeated(v)))


class CrossAttention(nn.Module):
    """Learned queries that attend to the sequence (a Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(5, 8))
        self.q, self.k, self.v, self.o = (
            nn.Linear(8, WIDTH),
            nn.Linear(6, WIDTH),
            nn.Linear(6, WIDTH),
            nn.Linear(WIDTH, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        latent = self.latent.expand(x.shape[0], -1, -1)
        attended = F.scaled_dot_product_attention(heads(self.q(latent)), heads(self.k(x)), heads(self.v(x)))
        return latent + self.o(merged(attended))


class LinearAttention(nn.Module):
    """elu + 1 as feature map: no zeros of weights silence a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.elu(heads(self.q(x))) + 1, F.elu(heads(self.k(x))) + 1, heads(self.v(x))
        state = torch.einsum("bhld,bhle->bhde", k, v)
        norm = torch.einsum("bhld,bhd->bhl", q, k.sum(2))
        return x + self.o(merged(torch.einsum("bhld,bhde,bhl->bhle", q, state, 1 / norm)))


class ReluAttention(nn.Module):
    """relu as feature map: exact, for relu keeps zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads(self.q(x)).relu(), heads(self.k(x)).relu(), heads(self.v(x))
        return x + self.o(merged(q @ (k.transpose(2, 3) @ v)))


class ChannelAttention(nn.Module):
    """Attention between channels, as XCiT: the softmax runs over them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(6, 3 * WIDTH), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(y).transpose(2, 3) for y in self.qkv(x).chunk(3, dim=-1))
        return x + self.o(merged(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(2, 3)))


class RelativeBias(nn.Module):
    """A learned bias by head and distance, shared by two layers (T5)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(2 * LENGTH, HEADS)
        self.qkv = nn.ModuleList([nn.Linear(6, 3 * WIDTH) for _ in range(2)])
        self.o = nn.ModuleList([nn.Linear(WIDTH, 6) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        bias = self.bias(places[:, None] - places[None] + LENGTH).permute(2, 0, 1)[None]
        for qkv, o in zip(self.qkv, self.o, strict=True):
            q, k, v = (heads(y) for y in qkv(x).chunk(3, dim=-1))
            x = x + o(merged(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))
        return x


class Alibi(nn.Module):
    """Slopes by head, computed without inputs or parameters (ALiBi)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(6, 3 * WIDTH), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        slopes = 0.5 ** torch.arange(1, HEADS + 1)
        distance = torch.arange(x.shape[1])[None] - torch.arange(x.shape[1])[:, None]
        q, k, v = (heads(y) for y in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(2, 3) / SIZE**0.5 + slopes[:, None, None] * distance
        return x + self.o(merged(scores.softmax(-1) @ v))


class QkNorm(nn.Module):
    """Attention with queries and keys normalised per head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, WIDTH) for _ in range(3))
        self.qn, self.kn, self.o = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qn(heads(self.q(x))), self.kn(heads(self.k(x))), heads(self.v(x))
        return x + self.o(merged(F.scaled_dot_product_attention(q, k, v)))


class HeadScale(nn.Module):
    """A learned scale per head, and talking heads: a product over heads before the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(6, 3 * WIDTH), nn.Linear(WIDTH, 6)
        self.talk, self.scale = nn.Linear(HEADS, HEADS, bias=False), nn.Parameter(torch.ones(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(y) for y in self.qkv(x).chunk(3, dim=-1))
        scores = self.talk((q @ k.transpose(2, 3)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.o(merged(self.scale * (scores.softmax(-1) @ v)))


class Window(nn.Module):
    """Attention in windows, which are folded into the batch (Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.o = nn.Conv2d(2, 8, 1), nn.Linear(8, 3 * WIDTH), nn.Linear(WIDTH, 8)
        self.merge = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).permute(0, 2, 3, 1)
        b, height, width, c = h.shape
        parts = h.view(b, height // 4, 4, width // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        qkv = self.qkv(parts).reshape(-1, 16, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        y = self.o(merged(F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])))
        h = h + y.view(b, height // 4, width // 4, 4, 4, c).transpose(2, 3).reshape(b, height, width, c)
        corners = [h[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.merge(torch.cat(corners, dim=-1))


class Latent(nn.Module):
    """Keys and values from one small latent, a part of the key shared by all heads (DeepSeek)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.down = nn.Linear(6, HEADS * 6), nn.Linear(6, 8 + 2)
        self.up, self.o = nn.Linear(8, HEADS * (4 + 5)), nn.Linear(HEADS * 5, 6)

    def forward(self, x: Tensor) -> Tensor:
        latent, shared = self.down(x).split([8, 2], dim=-1)
        k, v = heads(self.up(latent)).split([4, 5], dim=-1)
        k = torch.cat([k, shared[:, None].expand(-1, HEADS, -1, -1)], dim=-1)
        return x + self.o(merged(F.scaled_dot_product_attention(heads(self.q(x)), k, v)))


class Decoder(nn.Module):
    """A small GPT with learned positions and tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(19, 8), nn.Embedding(32, 8)
        self.first, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.o = nn.Linear(8, 3 * WIDTH), nn.Linear(WIDTH, 8)
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.word(ids) + self.place(torch.arange(ids.shape[1]))
        q, k, v = (heads(y) for y in self.qkv(self.first(h)).chunk(3, dim=-1))
        h = h + self.o(merged(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        h = h + self.down(F.gelu(self.up(self.last(h)), approximate="tanh"))
        return h @ self.word.weight.t()


def pixels(size: int = 8) -> Inputs:
    return {"x": torch.randn(BATCH, 2, size, size)}


ATTENTION = {
    "self-attention": lambda: (SelfAttention(), sequence()),
    "stacked-qkv": lambda: (StackedQkv(), sequence()),
    "stacked-qkv-select": lambda: (StackedQkv(unbind=False), sequence()),
    "split-qkv": lambda: (SplitQkv(), sequence()),
    "interleaved-qkv": lambda: (InterleavedQkv(), sequence()),
    "torch-attention": lambda: (TorchAttention(), sequence()),
    "torch-encoder": lambda: (TorchEncoder(), sequence()),
    "rotary": lambda: (Rotary(), sequence()),
    "complex-rotary": lambda: (ComplexRotary(), sequence()),
    "grouped-flag": lambda: (GroupedFlag(), sequence()),
    "multi-query": lambda: (MultiQuery(), sequence()),
    "expanded-kv": lambda: (ExpandedKv(), sequence()),
    "cross-attention": lambda: (CrossAttention(), sequence()),
    "linear-attention": lambda: (LinearAttention(), sequence()),
    "relu-attention": lambda: (ReluAttention(), sequence()),
    "channel-attention": lambda: (ChannelAttention(), sequence()),
    "relative-bias": lambda: (RelativeBias(), sequence()),
    "alibi": lambda: (Alibi(), sequence()),
    "qk-norm": lambda: (QkNorm(), sequence()),
    "head-scale": lambda: (HeadScale(), sequence()),
    "window": lambda: (Window(), pixels()),
    "latent": lambda: (Latent(), sequence()),
    "decoder": lambda: (Decoder(), tokens()),
}
