"""Empty: units that zeros in the weights have left without effect are removed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import analyze, capture, parse_pipeline, show
from fxprune.analysis import Axis
from fxprune.ir import Program
from fxprune.passes import Empty
from support.texts import mlp


def test_before_and_after() -> None:
    """Of 32 neurons, 20 are read by nothing but zeros, and one has no weights: its constant is part of the bias."""
    net: Any = mlp()
    with torch.no_grad():
        net.down.weight[:, 12:] = 0
        net.up.weight[0] = 0
    program = capture(net, (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (ffn:32, !8)
up.bias: (ffn:32)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:32)
relu = relu(linear) -> (!3, ffn:32)
down.weight: (!8, ffn:32)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )
    assert_expected_inline(
        show(Empty().run(program).program),
        """\
x: (!3, !8)
up.weight: (ffn:11, !8)
up.bias: (ffn:11)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:11)
relu = relu(linear) -> (!3, ffn:11)
down.weight: (!8, ffn:11)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )


class Normed(nn.Module):
    """A convolution under batch norm, a bend, a reader, pooled, and a classifier."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = (
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, 3, padding=padding),
        )
        self.last, self.out = nn.BatchNorm2d(6), nn.Linear(6, 4)
        with torch.no_grad():
            norms: list[Any] = [self.norm, self.last]
            for norm in norms:
                norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.bias.uniform_(0.1, 1)
            first: Any = self.first
            first.weight[:3], first.bias[:3] = 0, 0
            # the constants of the first three channels: positive, positive, and cut by the ReLU
            norms[0].running_mean[:3] = torch.tensor([-0.5, -0.5, 3.0])
            self.norm.weight[5] = 0
            self.second.weight[4], self.last.weight[1] = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.norm(self.first(x)).relu())
        logits: Tensor = self.out(self.last(y).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize(("padding", "kept"), [(0, {8: 4, 6: 4}), (1, {8: 7, 6: 4})])
def test_a_zeroed_channel_under_batch_norm_is_a_constant(padding: int, kept: dict[int, int]) -> None:
    """Its constant moves into the bias of what reads it; at the border of a padded convolution it is none, unless it is zero."""
    program = capture(Normed(padding).eval(), (torch.randn(2, 3, 7, 7),))
    result = parse_pipeline("empty").run(program)
    assert {axis.size: size for axis, size in sizes(program, result.program).items()} == kept
    assert result.proof.relative <= 1e-5


def test_statistics_of_the_input_are_no_constants() -> None:
    net = Normed()
    net.norm = nn.BatchNorm2d(8, track_running_stats=False)
    with torch.no_grad():
        net.norm.bias.uniform_(0.1, 1)
    program = capture(net.eval(), (torch.randn(2, 3, 7, 7),))
    assert {axis.size: size for axis, size in sizes(program, Empty().run(program).program).items()} == {
        8: 8,
        6: 4,
    }


def sizes(program: Program, slim: Program) -> dict[Axis, int]:
    """The axes of a program, and the size of each in a smaller one of the same names."""
    left = analyze(slim).by_name
    return {axis: left[axis.name].size for axis in analyze(program).axes}
