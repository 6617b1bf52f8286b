"""Insert gates: parameters that are multiplied into the graph at axes, regions and blocks of weights."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import capture, show
from fxprune.gates.insert import gate
from support.texts import Net, mlp, residual


def test_before_and_after_of_units() -> None:
    """One gate per neuron, multiplied into the weight that reads them."""
    program = capture(mlp(), (torch.randn(3, 8),))
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
        show(gate(program, ["ffn"]).program),
        """\
x: (!3, !8)
up.weight: (ffn:32, !8)
up.bias: (ffn:32)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:32)
relu = relu(linear) -> (!3, ffn:32)
gates.ffn: (ffn:32)
view_default = view(gates.ffn, [1, 32]) -> (1, ffn:32)
down.weight: (!8, ffn:32)
mul_tensor = mul(down.weight, view_default) -> (!8, ffn:32)
down.bias: (!8)
linear_1 = linear(relu, mul_tensor, down.bias) -> (!3, !8)
return linear_1""",
    )


def test_before_and_after_of_a_region() -> None:
    """One gate g for a branch: x + g · (branch(x) − x)."""
    program = capture(Net(lambda net, x: net.branch(x), branch=residual(8)), (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
branch.up.weight: (branch.ffn:16, !8)
branch.up.bias: (branch.ffn:16)
linear = linear(x, branch.up.weight, branch.up.bias) -> (!3, branch.ffn:16)
relu = relu(linear) -> (!3, branch.ffn:16)
branch.down.weight: (!8, branch.ffn:16)
branch.down.bias: (!8)
linear_1 = linear(relu, branch.down.weight, branch.down.bias) -> (!3, !8)
add = add(x, linear_1) -> (!3, !8)
return add""",
    )
    assert_expected_inline(
        show(gate(program, regions=["branch"]).program),
        """\
x: (!3, !8)
branch.up.weight: (branch.ffn:16, !8)
branch.up.bias: (branch.ffn:16)
linear = linear(x, branch.up.weight, branch.up.bias) -> (!3, branch.ffn:16)
relu = relu(linear) -> (!3, branch.ffn:16)
branch.down.weight: (!8, branch.ffn:16)
branch.down.bias: (!8)
linear_1 = linear(relu, branch.down.weight, branch.down.bias) -> (!3, !8)
add = add(x, linear_1) -> (!3, !8)
gates.branch: ()
lerp_tensor = lerp(x, add, gates.branch) -> (!3, !8)
return lerp_tensor""",
    )


def test_before_and_after_of_blocks() -> None:
    """One gate per block of 2 × 4, repeated over its block; with `biases`, an output's bias has the largest gate of its blocks."""
    program = capture(nn.Linear(8, 6), (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
input_1: (!3, !8)
weight: (!6, !8)
bias: (!6)
linear = linear(input_1, weight, bias) -> (!3, !6)
return linear""",
    )
    assert_expected_inline(
        show(gate(program, blocks={"weight": (2, 4)}, biases=True).program),
        """\
input_1: (!3, !2 x !4)
gates.weight: (!3, !2)
unsqueeze_default = unsqueeze(gates.weight, 1) -> (!3, 1, !2)
expand_default = expand(unsqueeze_default, [3, 2, 2]) -> (!3, !2, !2)
reshape_default = reshape(expand_default, [6, 2]) -> (!3 x !2, !2)
unsqueeze_default_1 = unsqueeze(reshape_default, 2) -> (!3 x !2, !2, 1)
expand_default_1 = expand(unsqueeze_default_1, [6, 2, 4]) -> (!3 x !2, !2, !4)
reshape_default_1 = reshape(expand_default_1, [6, 8]) -> (!3 x !2, !2 x !4)
weight: (!3 x !2, !2 x !4)
mul_tensor = mul(weight, reshape_default_1) -> (!3 x !2, !2 x !4)
amax_default = amax(gates.weight, [1]) -> (!3)
unsqueeze_default_2 = unsqueeze(amax_default, 1) -> (!3, 1)
expand_default_2 = expand(unsqueeze_default_2, [3, 2]) -> (!3, !2)
reshape_default_2 = reshape(expand_default_2, [6]) -> (!3 x !2)
bias: (!3 x !2)
mul_tensor_1 = mul(bias, reshape_default_2) -> (!3 x !2)
linear = linear(input_1, mul_tensor, mul_tensor_1) -> (!3, !3 x !2)
return linear""",
    )
