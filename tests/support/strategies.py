# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Random small nets for the laws: a chain of steps over [batch, length, width], built of operators that have rules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import strategies as st
from torch import Tensor, nn

BATCH, LENGTH, INTO = 2, 5, 6
KINDS = (
    "linear",
    "residual",
    "gate",
    "square",
    "norm",
    "attention",
    "grouped",
    "swap",
    "halves",
    "slice",
    "joined",
    "earlier",
    "scale",
    "positive",
    "outer",
    "bend",
    "spread",
    "conv",
    "maximum",
)
ACTIVATIONS = ("relu", "gelu", "tanh", "sigmoid", "silu", "softplus", "square", "exp", "elu", "hardswish")


@dataclass(frozen=True)
class Step:
    kind: str
    number: int


class RandomNet(nn.Module):
    """Random net: each step reads the value before it; `earlier`, `joined` and `maximum` read older values too."""

    def __init__(self, steps: tuple[Step, ...], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.steps, self.layers = steps, nn.ModuleList()
        self.scalars = nn.ParameterList()
        self._generator, self._shapes = generator, True
        self._run(torch.zeros(BATCH, LENGTH, INTO))
        self._shapes = False

    def __repr__(self) -> str:
        return f"RandomNet({', '.join(f'{step.kind}:{step.number}' for step in self.steps)})"

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        self._next = 0
        values = [self.layer(x.shape[-1], 8)(x)]
        for step in self.steps:
            values.append(getattr(self, f"_{step.kind}")(values, step.number))
        return self.layer(values[-1].shape[-1], 3)(values[-1].clamp(-50, 50))

    def layer(self, i: int, o: int, bias: bool = True) -> nn.Module:
        """The next linear layer; made on the first run."""
        if self._shapes:
            made = nn.Linear(i, o, bias)
            for parameter in made.parameters():
                parameter.data = torch.randn(parameter.shape, generator=self._generator) * i**-0.5
            self.layers.append(made)
        self._next += 1
        return self.layers[self._next - 1]

    def _linear(self, values: list[Tensor], number: int) -> Tensor:
        return self.layer(values[-1].shape[-1], 4 + 4 * (number % 3), number % 2 == 0)(values[-1])

    def _bend(self, values: list[Tensor], number: int) -> Tensor:
        name = ACTIVATIONS[number % len(ACTIVATIONS)]
        function = getattr(torch, name, None) or getattr(F, name)
        return function(values[-1].clamp(-3, 3) if name in ("exp", "square") else values[-1])

    def _residual(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        hidden = self._bend([self.layer(x.shape[-1], 8)(x)], number)
        return x + self.layer(8, x.shape[-1])(hidden)

    def _gate(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        return self._bend([self.layer(x.shape[-1], 8)(x)], number) * self.layer(x.shape[-1], 8)(x)

    def _square(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        return self._bend([x], number) + self.layer(x.shape[-1], x.shape[-1])(x)

    def _norm(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        return F.layer_norm(x, x.shape[-1:]) if number % 2 else F.rms_norm(x, x.shape[-1:])

    def _attention(self, values: list[Tensor], number: int) -> Tensor:
        x, heads = values[-1], (1, 2, 4)[number % 3]
        q, k, v = (self.layer(x.shape[-1], 8)(x).unflatten(-1, (heads, -1)).transpose(1, 2) for _ in range(3))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=number % 2 == 0)
        return self.layer(8, x.shape[-1])(attended.transpose(1, 2).flatten(2))

    def _grouped(self, values: list[Tensor], number: int) -> Tensor:
        x, groups = values[-1], 2 + 2 * (number % 2)
        wide = self.layer(x.shape[-1], groups * 3)(x).unflatten(-1, (groups, 3))
        return self.layer(3, 2)(wide).flatten(-2)

    def _swap(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) if x.shape[-1] % 2 == 0 else x

    def _halves(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        if x.shape[-1] % 2 or x.shape[-1] < 4:
            return x
        first, second = x.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1) * x if number % 2 else self._bend([first], number) * second

    def _slice(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        if x.shape[-1] < 4:
            return x
        return (x[..., 1:], x[..., :-2], x[..., :3], x[..., -3:])[number % 4]

    def _joined(self, values: list[Tensor], number: int) -> Tensor:
        other = values[number % len(values)]
        return (
            torch.cat([values[-1], other], dim=-1)
            if values[-1].shape[-1] + other.shape[-1] <= 32
            else values[-1]
        )

    def _earlier(self, values: list[Tensor], number: int) -> Tensor:
        x, other = values[-1], values[number % len(values)]
        return x + other if x.shape == other.shape else x + self.layer(other.shape[-1], x.shape[-1])(other)

    def _maximum(self, values: list[Tensor], number: int) -> Tensor:
        x, other = values[-1], values[number % len(values)]
        return torch.maximum(x, other) if x.shape == other.shape else torch.where(x > 0, x, 0.5 * x)

    def _parameter(self, *sizes: int) -> Tensor:
        if self._shapes:
            self.scalars.append(nn.Parameter(torch.randn(sizes, generator=self._generator)))
            self._scalar = len(self.scalars)
            return self.scalars[-1]
        self._scalar = getattr(self, "_scalar", 0)
        return next(p for p in self.scalars if tuple(p.shape) == sizes)

    def _scale(self, values: list[Tensor], number: int) -> Tensor:
        weight = self._parameter(values[-1].shape[-1])
        return values[-1] * weight if number % 2 else values[-1] + weight

    def _spread(self, values: list[Tensor], number: int) -> Tensor:
        return values[-1] + self._parameter(1).expand(values[-1].shape)

    def _positive(self, values: list[Tensor], number: int) -> Tensor:
        width = values[-1].shape[-1]
        weight = self._parameter(width, width).clamp(-1, 1).exp() / width
        return values[-1] + F.linear(values[-1].relu(), weight)

    def _outer(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1]
        pairs = x[..., :, None] * x[..., None, :] if number % 2 else x[..., :, None] + x[..., None, :]
        return pairs.clamp(-9, 9).relu().sum(-1 - number % 2) / x.shape[-1]

    def _conv(self, values: list[Tensor], number: int) -> Tensor:
        x = values[-1].transpose(1, 2)
        width, groups = x.shape[1], x.shape[1] if number % 2 else 1
        return F.conv1d(x, self._parameter(width, width // groups, 3), padding=1, groups=groups).transpose(
            1, 2
        )


def steps(longest: int = 6) -> st.SearchStrategy[tuple[Step, ...]]:
    step = st.builds(Step, st.sampled_from(KINDS), st.integers(0, 19))
    return st.lists(step, min_size=1, max_size=longest).map(tuple)


def nets(longest: int = 6) -> st.SearchStrategy[RandomNet]:
    """Random nets in float64."""
    return st.builds(lambda s, seed: RandomNet(s, seed).double(), steps(longest), st.integers(0, 9))


def example() -> Tensor:
    return torch.randn(BATCH, LENGTH, INTO, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
