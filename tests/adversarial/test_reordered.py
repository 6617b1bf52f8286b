"""Channels that a constant puts into another order are one axis: the user's module, silenced by hand, against the result of `shrink`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, prune, shrink
from fxprune.analysis import Axis
from fxprune.ir import Program
from support.models import distance

ORDER = torch.randperm(16, generator=torch.Generator().manual_seed(3))
KEPT = [0, 3, 4, 9, 10]
GONE = [i for i in range(16) if i not in KEPT]

Between = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """16 channels, something between that moves them, and a reader of what has channels still."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between, self.up, self.norm = between, nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.down, self.short = nn.Linear(16, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.norm(self.up(x)).relu())
        z: Tensor = (self.down if y.shape[-1] == 16 else self.short)(y)
        return z


MOVES: dict[str, Between] = {
    "index": lambda h: h[:, ORDER].sin(),
    "index_select": lambda h: h.index_select(1, ORDER).sin(),
    "negative positions": lambda h: h[:, ORDER - 16].sin(),
    "its inverse": lambda h: h[:, ORDER.argsort()].sin(),
    "there and back": lambda h: h[:, ORDER][:, ORDER.argsort()].sin() * h,
    "turned round": lambda h: h[:, torch.arange(15, -1, -1)].sin(),
    "a list": lambda h: h[:, [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14]].sin(),
}


def features() -> Tensor:
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def made(between: Between) -> tuple[Net, Program]:
    net = Net(between).double().eval()
    return net, capture(net, (features(),))


def axes_of(program: Program) -> list[Axis]:
    return [a for a in analyze(program).axes if ("up.weight", 0) in {(m.name, m.dim) for m in a.members}]


def silenced(net: Net, gone: list[int]) -> Net:
    """The net whose channels are zero behind the norm, by hand."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.norm.weight[gone], other.norm.bias[gone] = 0, 0
    return other


@pytest.mark.parametrize("name", MOVES)
def test_all_channels_move_and_each_can_go(name: str) -> None:
    net, program = made(MOVES[name])
    (axis,) = axes_of(program)
    assert (axis.size, axis.exact) == (16, True)
    slim = shrink(program, Selection({axis.name: KEPT}))
    assert distance(slim(features()), silenced(net, GONE)(features())) < 1e-12
    assert distance(silenced(net, GONE)(features()), net(features())) > 1e-2
    assert slim.parameter_count() == 6 * 5 + 5 + 5 + 5 + 5 * 3 + 3
    assert [a.size for a in axes_of(slim)] == [5]


def test_what_is_cut_in_parts_goes_by_its_places() -> None:
    """The second half of the channels in their new order gates the first: channels leave in pairs that the order names."""
    net, program = made(lambda h: h[:, ORDER][:, :8] * h[:, ORDER][:, 8:].tanh())
    (axis,) = axes_of(program)
    assert (axis.size, axis.exact) == (8, True)
    slim = shrink(program, Selection({axis.name: [0, 5, 6]}))
    gone = [int(ORDER[i + half]) for i in (1, 2, 3, 4, 7) for half in (0, 8)]
    assert distance(slim(features()), silenced(net, gone)(features())) < 1e-12
    assert slim.parameters()["up.weight"].shape == (6, 6)


def test_what_meets_itself_in_another_order_stays_whole() -> None:
    _, program = made(lambda h: h + h[:, ORDER])
    assert axes_of(program) == []
    said = {refusal.why for refusal in analyze(program).refusals if ("up.weight", 0) in refusal.places}
    assert said == {"it meets itself in another order"}


def test_a_choice_that_repeats_or_leaves_out_is_no_order() -> None:
    for between in (lambda h: h[:, [0, 0, *range(2, 16)]].sin(), lambda h: h[:, [0, 2, 4, 6, 8, 10, 12, 15]]):
        net, program = made(between)
        assert axes_of(program) == []
        assert distance(program(features()), net(features())) < 1e-12


class Twice(nn.Module):
    """One buffer of positions at two places, and in the result."""

    order: Tensor

    def __init__(self, shown: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.mid, self.down = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.shown: bool = shown
        self.register_buffer("order", ORDER)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.mid(self.up(x)[:, self.order].relu())[:, self.order].relu())
        return y + self.order.sum() if self.shown else y


@pytest.mark.parametrize("shown", [False, True])
def test_each_use_of_one_order_has_its_own(shown: bool) -> None:
    """Only `order` itself is shown in the result: its copies are renumbered, each with its channels."""
    net = Twice(shown).double().eval()
    result = prune(net, "ffn(ratio=0.5)", (features(),))
    assert sorted(result.selection) == ["mid.ffn", "up.ffn"]
    assert result.proof.relative < 1e-12
    keep = {name: [*result.selection[name]] for name in result.selection}
    with torch.no_grad():
        net.up.weight[[i for i in range(16) if i not in keep["up.ffn"]]] = 0
        net.up.bias[[i for i in range(16) if i not in keep["up.ffn"]]] = 0
        net.mid.weight[[i for i in range(16) if i not in keep["mid.ffn"]]] = 0
        net.mid.bias[[i for i in range(16) if i not in keep["mid.ffn"]]] = 0
        assert distance(result.program(features()), net(features())) < 1e-12
