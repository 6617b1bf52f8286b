"""Bypass: a region's input takes the place of its output, and what only the region needed is gone."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import bypass, capture, show
from support.texts import Net, residual


def test_before_and_after() -> None:
    """Readers of the branch's sum read its input instead; its weights are gone."""
    net = Net(lambda net, x: net.second(net.first(x)), first=residual(8), second=residual(8))
    program = capture(net, (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
first.up.weight: (first.ffn:16, !8)
first.up.bias: (first.ffn:16)
linear = linear(x, first.up.weight, first.up.bias) -> (!3, first.ffn:16)
relu = relu(linear) -> (!3, first.ffn:16)
first.down.weight: (!8, first.ffn:16)
first.down.bias: (!8)
linear_1 = linear(relu, first.down.weight, first.down.bias) -> (!3, !8)
add = add(x, linear_1) -> (!3, !8)
second.up.weight: (second.ffn:16, !8)
second.up.bias: (second.ffn:16)
linear_2 = linear(add, second.up.weight, second.up.bias) -> (!3, second.ffn:16)
relu_1 = relu(linear_2) -> (!3, second.ffn:16)
second.down.weight: (!8, second.ffn:16)
second.down.bias: (!8)
linear_3 = linear(relu_1, second.down.weight, second.down.bias) -> (!3, !8)
add_1 = add(add, linear_3) -> (!3, !8)
return add_1""",
    )
    assert_expected_inline(
        show(bypass(program, ["first"])),
        """\
x: (!3, !8)
second.up.weight: (second.ffn:16, !8)
second.up.bias: (second.ffn:16)
linear_2 = linear(x, second.up.weight, second.up.bias) -> (!3, second.ffn:16)
relu_1 = relu(linear_2) -> (!3, second.ffn:16)
second.down.weight: (!8, second.ffn:16)
second.down.bias: (!8)
linear_3 = linear(relu_1, second.down.weight, second.down.bias) -> (!3, !8)
add_1 = add(x, linear_3) -> (!3, !8)
return add_1""",
    )


def test_before_and_after_of_a_branch_whose_bias_another_reads() -> None:
    """A side value stays where something else reads it."""
    bias = nn.Parameter(torch.randn(8))

    def branch(net: Any, x: Tensor, bias: Tensor) -> Any:
        return x + net.linear(x + bias)

    def forward(net: Any, x: Tensor) -> Any:
        return net.second(net.first(x, net.bias), net.bias)

    first, second = (Net(branch, linear=nn.Linear(8, 8)) for _ in range(2))
    program = capture(Net(forward, first=first, second=second, bias=bias), (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
bias: (!8)
add = add(x, bias) -> (!3, !8)
first.linear.weight: (!8, !8)
first.linear.bias: (!8)
linear = linear(add, first.linear.weight, first.linear.bias) -> (!3, !8)
add_1 = add(x, linear) -> (!3, !8)
add_2 = add(add_1, bias) -> (!3, !8)
second.linear.weight: (!8, !8)
second.linear.bias: (!8)
linear_1 = linear(add_2, second.linear.weight, second.linear.bias) -> (!3, !8)
add_3 = add(add_1, linear_1) -> (!3, !8)
return add_3""",
    )
    assert_expected_inline(
        show(bypass(program, ["first"])),
        """\
x: (!3, !8)
bias: (!8)
add_2 = add(x, bias) -> (!3, !8)
second.linear.weight: (!8, !8)
second.linear.bias: (!8)
linear_1 = linear(add_2, second.linear.weight, second.linear.bias) -> (!3, !8)
add_3 = add(x, linear_1) -> (!3, !8)
return add_3""",
    )
