# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Hand-written mixtures whose experts are modules of their own, summed with the weights of a router, or stacked first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.nets_dense import features

EXPERTS, INTO, OUT = 4, 6, 5


class Modules(nn.Module):
    """A router, and experts of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(INTO, EXPERTS)
        self.experts = nn.ModuleList(self.expert(8 + i) for i in range(EXPERTS))

    def expert(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(INTO, width), nn.GELU(), nn.Linear(width, OUT))


class Weighed(Modules):
    """Python's own sum of experts, weighed by slices of softmax."""

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(dim=-1)
        return sum(shares[..., k : k + 1] * expert(x) for k, expert in enumerate(self.experts))


class Gates(Modules):
    """Gates of their own by sigmoid, one column at a time, added to zeros in place."""

    def forward(self, x: Tensor) -> Tensor:
        gates, out = self.router(x).sigmoid(), x.new_zeros(*x.shape[:-1], OUT)
        for k, expert in enumerate(self.experts):
            out += gates[:, k].unsqueeze(-1) * expert(x)
        return out


class Unbound(Modules):
    """Gates by ReLU, unbound, with a residual in front."""

    def forward(self, x: Tensor) -> Tensor:
        out = x[..., :OUT].tanh()
        for gate, expert in zip(self.router(x).relu().unbind(dim=-1), self.experts, strict=True):
            out = out + expert(x) * gate[..., None]
        return out


class Chunked(Modules):
    """Gates split into columns, summed as a tree, under a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(OUT)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).sigmoid().chunk(EXPERTS, dim=-1)
        a, b, c, d = (expert(x) * gate for expert, gate in zip(self.experts, gates, strict=True))
        return self.norm((a + b) + (c + d))


class TopTwoModules(Modules):
    """Softmax, all but the best two set to zero, renormalised."""

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(dim=-1)
        best, numbers = shares.topk(2, dim=-1)
        kept = torch.zeros_like(shares).scatter(-1, numbers, best / best.sum(dim=-1, keepdim=True))
        return sum(kept[..., k : k + 1] * expert(x) for k, expert in enumerate(self.experts))


class MultiGate(Modules):
    """Stacked experts, a softmax for each of two tasks (MMoE): one by einsum, one by matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(INTO, EXPERTS, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stacked = torch.stack([expert(x) for expert in self.experts], dim=1)
        first = torch.einsum("be,bed->bd", self.router(x).softmax(dim=-1), stacked)
        return first, (self.other(x).softmax(dim=-1).unsqueeze(1) @ stacked).squeeze(1)


class StackedGates(Modules):
    """Experts stacked behind, by product and sum, with gates by sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (self.router(x).sigmoid().unsqueeze(1) * stacked).sum(dim=-1)


class Concatenated(Modules):
    """Experts side by side, concatenated in a dim of their own."""

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.cat([expert(x)[:, None] for expert in self.experts], dim=1)
        return (self.router(x).sigmoid().unsqueeze(-1) * stacked).sum(dim=1)


class StackedProducts(Modules):
    """Weighed experts, stacked and summed."""

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(dim=-1)
        return torch.stack([shares[:, k, None] * expert(x) for k, expert in enumerate(self.experts)]).sum(0)


class SharedExpert(Modules):
    """The first expert serves two gates: it goes with the second of them only."""

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).sigmoid()
        return sum(gates[..., k : k + 1] * self.experts[k // 2](x) for k in range(EXPERTS))


class Stages(nn.Module):
    """Mixtures one after another, each with a residual, and experts that are mixtures."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.leaves = nn.Linear(INTO, 2), nn.ModuleList(nn.Linear(INTO, INTO) for _ in range(6))
        self.inner = nn.ModuleList(nn.Linear(INTO, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        outer, out = self.outer(x).sigmoid(), x
        for i, router in enumerate(self.inner):
            inner = router(x).softmax(dim=-1)
            leaves = self.leaves[3 * i : 3 * i + 3]
            mixed = sum(inner[..., k : k + 1] * leaf(x).tanh() for k, leaf in enumerate(leaves))
            out = out + outer[..., i : i + 1] * mixed
        return out


EXPERT_MODULES: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "modules-weighed": lambda: (Weighed(), features()),
    "modules-gates": lambda: (Gates(), features()),
    "modules-unbound": lambda: (Unbound(), features()),
    "modules-chunked": lambda: (Chunked(), features()),
    "modules-top-two": lambda: (TopTwoModules(), features()),
    "modules-multi-gate": lambda: (MultiGate(), features()),
    "modules-stacked-gates": lambda: (StackedGates(), features()),
    "modules-concatenated": lambda: (Concatenated(), features()),
    "modules-stacked-products": lambda: (StackedProducts(), features()),
    "modules-shared": lambda: (SharedExpert(), features()),
    "modules-stages": lambda: (Stages(), features()),
}
