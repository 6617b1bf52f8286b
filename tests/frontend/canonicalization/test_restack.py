"""Restack: what is taken position by position and stacked again is computed for all positions at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import Program, show
from fxprune.frontend.canonicalization.restack import restack
from fxprune.rewrite import remove_dead
from support.texts import Net, exported


def restacked(program: Program) -> Program:
    restack(program.graph_module)
    remove_dead(program.graph_module)
    program.graph_module.recompile()
    return program


def test_before_and_after() -> None:
    """Three neurons, each scaled by a weight of its own, in reverse."""

    def forward(net: Any, x: Tensor) -> Any:
        h = net.up(x)
        return net.down(torch.stack([h[:, i].relu() * net.scale[i] for i in (2, 1, 0)], -1))

    net = Net(forward, up=nn.Linear(4, 3), down=nn.Linear(3, 5), scale=nn.Parameter(torch.randn(3)))
    x = torch.randn(2, 4)
    program = exported(net, x)
    assert_expected_inline(
        show(program),
        """\
x: (!2, !4)
up.weight: (!2 + !1, !4)
up.bias: (!2 + !1)
linear = linear(x, up.weight, up.bias) -> (!2, !2 + !1)
select = select(linear, 1, 2) -> (!2)
relu = relu(select) -> (!2)
scale: (!2 + !1)
select_1 = select(scale, 0, 2) -> ()
mul = mul(relu, select_1) -> (!2)
select_2 = select(linear, 1, 1) -> (!2)
relu_1 = relu(select_2) -> (!2)
select_3 = select(scale, 0, 1) -> ()
mul_1 = mul(relu_1, select_3) -> (!2)
select_4 = select(linear, 1, 0) -> (!2)
relu_2 = relu(select_4) -> (!2)
select_5 = select(scale, 0, 0) -> ()
mul_2 = mul(relu_2, select_5) -> (!2)
stack = stack([mul, mul_1, mul_2], -1) -> (!2, !3)
down.weight: (!5, !3)
down.bias: (!5)
linear_1 = linear(stack, down.weight, down.bias) -> (!2, !5)
return linear_1""",
    )
    assert_expected_inline(
        show(restacked(program)),
        """\
x: (!2, !4)
up.weight: (ffn:3, !4)
up.bias: (ffn:3)
linear = linear(x, up.weight, up.bias) -> (!2, ffn:3)
flip_default = flip(linear, [-1]) -> (!2, reversed ffn:3)
relu_default = relu(flip_default) -> (!2, reversed ffn:3)
scale: (ffn:3)
flip_default_1 = flip(scale, [-1]) -> (reversed ffn:3)
mul_tensor = mul(relu_default, flip_default_1) -> (!2, reversed ffn:3)
down.weight: (!5, reversed ffn:3)
down.bias: (!5)
linear_1 = linear(mul_tensor, down.weight, down.bias) -> (!2, !5)
return linear_1""",
    )
    assert torch.equal(program(x), net(x))


def differences(x: Tensor) -> Tensor:
    first = x[:, 0]
    return torch.stack([part - first for part in x.unbind(1)], 1)


def turned(x: Tensor) -> Tensor:
    y = x.t().tanh()
    return torch.stack([x[:, i] * y[i] for i in range(4)], 1)


def cell(x: Tensor) -> Tensor:
    """A recurrence: each position needs the one before."""
    states = [x[:, 0]]
    for i in range(1, x.shape[1]):
        states.append(states[-1] * 0.5 + x[:, i])
    return torch.stack(states, 1)


def written(x: Tensor) -> Tensor:
    """A position is written into between being taken and being stacked."""
    y = x.relu()
    parts = [y[:, i] for i in range(4)]
    y[:, 0].add_(1)
    return torch.stack(parts, 1)


@pytest.mark.parametrize(
    ("function", "stacks"),
    [
        (lambda x: torch.stack([x[:, i].exp() for i in range(4)], 0), 0),
        (differences, 0),
        (turned, 0),
        (lambda x: torch.stack([x[:, i] for i in (0, 2, 1, 3)], 1), 1),
        (lambda x: torch.stack([x[:, i] for i in range(3)], 1), 1),
        (lambda x: torch.stack([x[:, i] * (i + 2) for i in range(4)], 1), 1),
        (lambda x: torch.stack([x[:, i].softmax(0) for i in range(4)], 1), 1),
        (lambda x: torch.stack([x[:, 0], x[:, 0]], 1), 1),
        (lambda x: torch.stack([x[:, i] * x.double().sum(0)[i] for i in range(4)], 1), 1),
        (cell, 1),
        (written, 1),
    ],
)
def test_values_stay_and_what_is_no_such_loop_is_left_alone(
    function: Callable[[Tensor], Tensor], stacks: int
) -> None:
    x = torch.randn(3, 4)
    program = restacked(exported(Net(lambda net, x: function(x)), x))
    assert torch.equal(program(x), function(x))
    assert len(program.graph.find_nodes(op="call_function", target=torch.ops.aten.stack.default)) == stacks
