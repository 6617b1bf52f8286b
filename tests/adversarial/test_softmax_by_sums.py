"""Attention whose weighted sum is written as products and sums: what a softmax runs over, and its heads, against the module by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, shrink
from fxprune.analysis import Axis
from fxprune.ir import Program
from support.models import distance

HEADS, SIZE = 4, 8
KEPT, GONE = [0, 3], [1, 2]

Weigh = Callable[[Tensor, int], Tensor]


def by_hand(scores: Tensor, dim: int) -> Tensor:
    return scores.exp() / scores.exp().sum(dim, keepdim=True)


def stable(scores: Tensor, dim: int) -> Tensor:
    return by_hand(scores - scores.amax(dim, keepdim=True), dim)


def gated(scores: Tensor, dim: int) -> Tensor:
    return scores.sigmoid()


class OverHeads(nn.Module):
    """Values of four heads, of which each place takes a weighted mean."""

    def __init__(self, weigh: Weigh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weigh, self.score, self.v, self.o = (
            weigh,
            nn.Linear(6, HEADS),
            nn.Linear(6, 32),
            nn.Linear(SIZE, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        values = self.v(x).unflatten(-1, (HEADS, SIZE))
        y: Tensor = self.o((self.weigh(self.score(x), -1)[..., None] * values).sum(-2))
        return y


class OverPlaces(nn.Module):
    """Separable attention (MobileViT v2): each head takes one weighted mean over places, which gates the values of all."""

    def __init__(self, weigh: Weigh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weigh, self.score, self.k, self.v = (
            weigh,
            nn.Linear(6, HEADS),
            nn.Linear(6, 32),
            nn.Linear(6, 32),
        )
        self.o = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = (layer(x).unflatten(-1, (HEADS, SIZE)) for layer in (self.k, self.v))
        context = (keys * self.weigh(self.score(x), 1)[..., None]).sum(1, keepdim=True)
        y: Tensor = self.o((values.relu() * context).flatten(2))
        return y


def example() -> Tensor:
    return torch.randn(2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def heads_of(net: nn.Module) -> tuple[Program, Axis]:
    program = capture(net, (example(),))
    places = {axis.name: {(m.name, m.dim) for m in axis.members} for axis in analyze(program).axes}
    (axis,) = (a for a in analyze(program).axes if a.size == HEADS and ("score.weight", 0) in places[a.name])
    return program, axis


def values_zeroed(net: nn.Module) -> nn.Module:
    """The net whose values of the heads that go are zero, by hand."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.get_parameter("v.weight").view(HEADS, SIZE, 6)[GONE] = 0
        other.get_parameter("v.bias").view(HEADS, SIZE)[GONE] = 0
    return other


def never_taken(net: nn.Module) -> nn.Module:
    """The net whose scores of the heads that go are -inf, by hand."""
    other = copy.deepcopy(net)
    gone = torch.tensor(GONE)
    other.get_submodule("score").register_forward_hook(
        lambda _, __, out: out.index_fill(-1, gone, float("-inf"))
    )
    return other


@pytest.mark.parametrize(
    ("net", "meaning", "by_hand_silenced"),
    [
        (OverHeads(torch.softmax), "never chosen", never_taken),
        (OverHeads(gated), "zeroed", values_zeroed),
        (OverPlaces(torch.softmax), "zeroed", values_zeroed),
        (OverPlaces(by_hand), "zeroed", values_zeroed),
    ],
    ids=["softmax over heads", "gates of heads", "softmax over places", "a softmax over places by hand"],
)
def test_what_is_exact(
    net: nn.Module, meaning: str, by_hand_silenced: Callable[[nn.Module], nn.Module]
) -> None:
    net, x = net.double().eval(), example()
    program, axis = heads_of(net)
    assert axis.meaning == meaning
    slim, silenced = shrink(program, Selection({axis.name: KEPT})), by_hand_silenced(net)
    assert distance(slim(x), silenced(x)) < 1e-12
    assert distance(silenced(x), net(x)) > 1e-2


@pytest.mark.parametrize(
    ("weigh", "why"),
    [
        (by_hand, "no zeros of weights silence it at sum_1"),
        (stable, "aten.amax.default over it at amax: the statistic changes"),
    ],
)
def test_a_softmax_over_heads_by_hand_is_refused_for_a_true_reason(weigh: Weigh, why: str) -> None:
    """The sum of exponentials has a term of each head that no zero of a weight takes away."""
    net, x = OverHeads(weigh).double().eval(), example()
    program, axis = heads_of(net)
    assert axis.why_inexact == why
    slim = shrink(program, Selection({axis.name: KEPT}))
    assert not distance(slim(x), values_zeroed(net)(x)) < 1e-2
    assert distance(slim(x), never_taken(net)(x)) < 1e-12
