"""Absorb constants: an input that is always one number becomes part of the bias."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import capture, show
from fxprune.gates.absorb_constants import absorb_constants
from support.texts import Net


def test_before_and_after() -> None:
    """Neuron 0 has no weights: it is always relu(2), which its reader multiplies by 3; that is a bias of 6, and the column is zero."""
    up, down = nn.Linear(2, 2), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        up.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        up.bias.copy_(torch.tensor([2.0, 0.0]))
        down.weight.copy_(torch.tensor([[3.0, 1.0]]))
    program = capture(Net(lambda net, x: net.down(net.up(x).relu()), up=up, down=down), (torch.randn(3, 2),))
    absorbed = absorb_constants(program)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !2)
up.weight: (ffn:2, !2)
up.bias: (ffn:2)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:2)
relu = relu(linear) -> (!3, ffn:2)
down.weight: (1, ffn:2)
linear_1 = linear(relu, down.weight) -> (!3, !1)
return linear_1""",
    )
    assert_expected_inline(
        show(absorbed),
        """\
x: (!3, !2)
up.weight: (ffn:2, !2)
up.bias: (ffn:2)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:2)
relu = relu(linear) -> (!3, ffn:2)
down.weight: (1, ffn:2)
down.bias: (1)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !1)
return linear_1""",
    )
    assert absorbed.tensors()["down.weight"].tolist() == [[0, 1]]
    assert absorbed.tensors()["down.bias"].tolist() == [6]
