# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""The work of analysis, of regions and of bypass grows with the number of layers, not with its square: calls of functions are counted."""

import cProfile
import math
import pstats
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune import analyze, bypass, capture
from fxprune.ir import Program
from support.residual_nets import Chain, Parallel

FEW, MANY = 24, 96


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 16), nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Skipping(nn.Module):
    """Every layer adds the first one's input, and its output is read at the end."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        first = h = self.first(x)
        found = []
        for layer in self.layers:
            h = h + layer(h) + first
            found.append(h)
        return self.last(torch.stack(found).sum(0))


class Sized(nn.Module):
    """Every layer reads the sizes of the input, and one mask made of it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        h, mask = self.first(x), x.sum(-1, keepdim=True) > 0
        for layer in self.layers:
            h = h + layer(h).view(rows, length, 2, 4).reshape(rows, length, 8) * mask
        return self.last(h)


class Routed(nn.Module):
    """Every layer chooses two of four experts of its own for each position."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.routers = nn.ModuleList(nn.Linear(8, 4) for _ in range(count))
        self.experts = nn.ParameterList(torch.randn(4, 8, 8) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for router, experts in zip(self.routers, self.experts, strict=True):
            scores, numbers = router(h).softmax(-1).topk(2, -1)
            weights = torch.zeros_like(router(h)).scatter(-1, numbers, scores)
            h = h + torch.einsum("bnw,ewf,bne->bnf", h, experts, weights)
        return self.last(h)


MAKES: dict[str, Callable[[int], nn.Module]] = {
    "residual": lambda count: Chain(Residual, count),
    "parallel": lambda count: Chain(lambda width: Parallel(width, "a + f + x", shared=True), count),
    "skipping": Skipping,
    "sized": Sized,
    "routed": Routed,
}


@cache
def program_of(kind: str, count: int) -> Program:
    torch.manual_seed(0)
    shapes = {"x": {0: Dim.AUTO, 1: Dim.AUTO}} if kind == "sized" else None
    return capture(MAKES[kind](count).eval(), (torch.randn(2, 7, 4),), dynamic_shapes=shapes)


def regions(program: Program) -> list[str]:
    found = analyze(program).regions
    return [region.name for region in found if region.unit == "branch" and region.parameters]


STEPS: dict[str, Callable[[Program], object]] = {
    "analyze": analyze.__wrapped__,  # type: ignore[attr-defined]
    "regions": lambda program: analyze.__wrapped__(program).regions,  # type: ignore[attr-defined]
    "bypass of one": lambda program: bypass(program, regions(program)[:1]),
    "bypass of half": lambda program: bypass(program, regions(program)[::2]),
}


def calls(step: Callable[[Program], object], program: Program) -> int:
    profile = cProfile.Profile()
    profile.runcall(step, program)
    total: int = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
    return total


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("step", STEPS)
def test_work_grows_as_the_layers_do(step: str, kind: str) -> None:
    few, many = (calls(STEPS[step], program_of(kind, count)) for count in (FEW, MANY))
    assert math.log(many / few) / math.log(MANY / FEW) <= 1.2
