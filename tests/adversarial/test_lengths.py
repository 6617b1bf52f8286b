"""Lengths of vectors are sums of powers: channels zeroed by hand leave them as they are, so normalisation by a length is exact."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, shrink
from fxprune.analysis import Axis
from fxprune.ir import Program
from support.models import distance

KEPT, GONE = [0, 3, 4], [1, 2, 5, 6, 7]

Between = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Two projections to 8 channels, a function of both, and what reads its result where that still has channels."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.up, self.gate, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.up(x), self.gate(x))
        z: Tensor = self.down(y) if y.shape[-1:] == (8,) else y
        return z


def by_length(order: float) -> Between:
    return lambda a, b: a / a.norm(order, -1, keepdim=True)


EXACT: dict[str, Between] = {
    "normalize": lambda a, b: F.normalize(a, dim=-1) * 8**0.5,
    "normalize, then a product": lambda a, b: (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1),
    "root of a sum of squares": lambda a, b: a / (a.square().sum(-1, keepdim=True) + 1e-6).sqrt(),
    **{f"order {order}": by_length(order) for order in (0.5, 1, 2, 3, float("inf"))},
    "linalg.norm": lambda a, b: a / torch.linalg.norm(a, dim=-1, keepdim=True),
    "Frobenius norm": lambda a, b: torch.stack([a, b], -1).norm(dim=(1, 2)),
    "matrix norm of elements": lambda a, b: torch.linalg.matrix_norm(torch.stack([a, b], -1)),
    "a norm of all": lambda a, b: a.norm(),
    "cosine": lambda a, b: F.cosine_similarity(a, b, dim=-1),
    "distance of all": torch.dist,
}

CHANGES: dict[str, Between] = {
    "order -1": by_length(-1),
    "order -inf": by_length(float("-inf")),
    "mean square": lambda a, b: a / a.square().mean(-1, keepdim=True).sqrt(),
    "distance with a small number": lambda a, b: F.pairwise_distance(a, b, eps=0.5),
}


def net_of(between: Between) -> Net:
    return Net(between).double().eval()


def features() -> Tensor:
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def channels_of(net: Net) -> tuple[Program, Axis]:
    program = capture(net, (features(),))
    axes = analyze(program).axes
    (axis,) = (a for a in axes if a.size == 8 and ("up.weight", 0) in {(m.name, m.dim) for m in a.members})
    return program, axis


def silenced(net: Net) -> Net:
    """The net whose channels are zeroed where they are made, by hand."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for layer in (other.up, other.gate):
            layer.weight[GONE], layer.bias[GONE] = 0, 0
    return other


@pytest.mark.parametrize("name", EXACT)
def test_zeros_add_nothing_to_a_length(name: str) -> None:
    net, x = net_of(EXACT[name]), features()
    program, axis = channels_of(net)
    assert (axis.exact, axis.why_inexact) == (True, "")
    slim = shrink(program, Selection({axis.name: KEPT}))
    assert distance(slim(x), silenced(net)(x)) < 1e-12
    assert distance(silenced(net)(x), net(x)) > 1e-2


@pytest.mark.parametrize("name", CHANGES)
def test_other_statistics_change_with_zeros(name: str) -> None:
    net, x = net_of(CHANGES[name]), features()
    program, axis = channels_of(net)
    assert "the statistic changes" in axis.why_inexact
    slim = shrink(program, Selection({axis.name: KEPT}))
    assert not distance(slim(x), silenced(net)(x)) < 1e-3
