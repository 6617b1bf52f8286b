# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Small nets with residuals of every kind: NETS maps a name to a function that builds (module, example inputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]
Order = Callable[[Tensor, Tensor, Tensor], Tensor]

#: the orders in which a stream and two branches are added
ORDERS: dict[str, Order] = {
    "x + a + f": lambda x, a, f: x + a + f,
    "x + f + a": lambda x, a, f: x + f + a,
    "a + x + f": lambda x, a, f: a + x + f,
    "a + f + x": lambda x, a, f: a + f + x,
    "f + a + x": lambda x, a, f: f + a + x,
    "x + (a + f)": lambda x, a, f: x + (a + f),
    "f + (x + a)": lambda x, a, f: f + (x + a),
    "a + (f + x)": lambda x, a, f: a + (f + x),
}


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(mixed(self.qkv(x)))


def mixed(qkv: Tensor) -> Tensor:
    """Attention with two heads of queries, keys and values side by side."""
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Chain(nn.Module):
    """Layers in a row, of whichever class."""

    def __init__(self, make: Callable[[int], nn.Module], count: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(make(8) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


class Bottleneck(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.two(self.one(x).relu())).relu()


class Concatenated(nn.Module):
    """YOLO's C2f: the outputs of all bottlenecks are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(40, 5, 1)
        self.blocks = nn.ModuleList(Bottleneck(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        found = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            found.append(block(found[-1]))
        return self.last(torch.cat(found, 1))


class Res2(nn.Module):
    """Branch of parts that read one another, with squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.after = (nn.Conv1d(channels, channels, 1) for _ in range(2))
        self.parts = nn.ModuleList(nn.Conv1d(channels // 4, channels // 4, 3, padding=1) for _ in range(3))
        self.squeeze, self.excite = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.before(x).relu().chunk(4, 1)
        found = [first]
        for place, (part, conv) in enumerate(zip(others, self.parts, strict=True)):
            found.append(conv(part + found[-1] if place else part))
        h = self.after(torch.cat(found, 1)).relu()
        return x + h * torch.sigmoid(self.excite(self.squeeze(h.mean(-1)).relu())).unsqueeze(-1)


class Aggregated(nn.Module):
    """ECAPA: what every block gives is kept and aggregated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(5, 8, 5, padding=2), nn.Conv1d(24, 6, 1)
        self.blocks = nn.ModuleList(Res2(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return self.last(torch.cat(found, 1)).mean(-1)


class UNet(nn.Module):
    """Blocks beside skips: every block's output is read on the other side."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(24, 2, 1)
        self.down, self.up = nn.Conv2d(8, 8, 2, 2), nn.ConvTranspose2d(8, 8, 2, 2)
        self.outer, self.inner = (nn.ModuleList(Bottleneck(8) for _ in range(2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skips = []
        for block in self.outer:
            x = block(x)
            skips.append(x)
        x = self.down(x)
        for block in self.inner:
            x = block(x)
        return self.last(torch.cat([self.up(x), *skips], 1))


class Coupling(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f, self.g = Mlp(width), Mlp(width)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a = a + self.f(b)
        return a, b + self.g(a)


class Reversible(nn.Module):
    """Two streams, each the branch's input of the other; they begin as one (Reformer), or apart."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8 if together else 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(Coupling(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        a, b = (h, h) if h.shape[-1] == 8 else h.chunk(2, -1)
        for block in self.blocks:
            a, b = block(a, b)
        return self.last(torch.cat([a, b], -1))


class Double(nn.Module):
    """Flux: two streams attend jointly, each has its own residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.image_qkv, self.text_qkv = (nn.Linear(width, 3 * width) for _ in range(2))
        self.image_out, self.text_out = (nn.Linear(width, width) for _ in range(2))
        self.image_mlp, self.text_mlp = Mlp(width), Mlp(width)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        length = text.shape[1]
        parts = [self.text_qkv(self.norms[0](text)), self.image_qkv(self.norms[1](image))]
        joint = mixed(torch.cat(parts, 1))
        text, image = text + self.text_out(joint[:, :length]), image + self.image_out(joint[:, length:])
        return image + self.image_mlp(self.norms[2](image)), text + self.text_mlp(self.norms[3](text))


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 8), nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Double(8) for _ in range(3))
        self.last, self.other = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        image, text = self.image(image), self.text(text)
        for block in self.blocks:
            image, text = block(image, text)
        return self.last(image), self.other(text)


class Gated(nn.Module):
    """Residual with a gate: x · g + f(x) · (1 - g)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.f, self.gate = nn.LayerNorm(width), Mlp(width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.f(self.norm(x))
        gate = torch.sigmoid(self.gate(torch.cat([x, y], -1)))
        return x * gate + y * (1 - gate)


class Highway(nn.Module):
    """Gate that only the input sets, or a step from the input towards the branch (lerp)."""

    def __init__(self, width: int, step: bool) -> None:
        super().__init__()
        self.f, self.gate, self.step = nn.Linear(width, width), nn.Linear(width, width), step

    def forward(self, x: Tensor) -> Tensor:
        gate, y = torch.sigmoid(self.gate(x)), self.f(x).relu()
        return torch.lerp(x, y, gate) if self.step else x * gate + y * (1 - gate)


class Recurrent(nn.Module):
    """The GRU gate of x-transformers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.f, self.cell = nn.LayerNorm(width), Mlp(width), nn.GRUCell(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(self.f(self.norm(x)).flatten(0, -2), x.flatten(0, -2)).view_as(x)


class Parallel(nn.Module):
    """Cohere and StableLM: attention and a feed-forward block of one stream are added in some order."""

    def __init__(self, width: int, order: str, shared: bool) -> None:
        super().__init__()
        self.norm, self.own = nn.LayerNorm(width), None if shared else nn.LayerNorm(width)
        self.attention, self.mlp, self.order = Attention(width), Mlp(width), order

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return ORDERS[self.order](x, self.attention(h), self.mlp(self.own(x) if self.own else h))


class Listed(nn.Module):
    """x-transformers: a layer is a list [norm, block, residual], which no module calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        blocks = [Attention(8) if place % 2 == 0 else Mlp(8) for place in range(4)]
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(8), block, nn.GRUCell(8, 8)]) for block in blocks
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for parts in self.layers:
            norm, block, residual = iter(parts)  # type: ignore[call-overload]
            x = residual(block(norm(x)).flatten(0, -2), x.flatten(0, -2)).view_as(x)
        return self.last(x)


class Outside(nn.Module):
    """The sum is outside of the module: its identity would double the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Mlp(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def _chain(make: Callable[..., nn.Module], **options: Any) -> Callable[[], Built]:
    return lambda: (Chain(lambda width: make(width, **options)), (torch.randn(2, 7, 4),))


NETS: dict[str, Callable[[], Built]] = {
    "concatenated": lambda: (Concatenated(), (torch.randn(2, 3, 6, 6),)),
    "aggregated": lambda: (Aggregated(), (torch.randn(2, 5, 11),)),
    "u-net": lambda: (UNet(), (torch.randn(2, 3, 8, 8),)),
    "reversible": lambda: (Reversible(together=False), (torch.randn(2, 7, 4),)),
    "reversible, together": lambda: (Reversible(together=True), (torch.randn(2, 7, 4),)),
    "two streams": lambda: (TwoStreams(), (torch.randn(2, 7, 4), torch.randn(2, 3, 5))),
    "gated": _chain(Gated),
    "highway": _chain(Highway, step=False),
    "highway, step": _chain(Highway, step=True),
    "recurrent": _chain(Recurrent),
    "listed": lambda: (Listed(), (torch.randn(2, 7, 4),)),
    "outside": lambda: (Outside(), (torch.randn(2, 7, 4),)),
    **{
        f"{order}, {'one norm' if shared else 'two norms'}": _chain(Parallel, order=order, shared=shared)
        for order in ORDERS
        for shared in (True, False)
    },
}
