"""Apply: regions are bypassed first, then axes shrink."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline

from fxprune import Selection, apply, capture, show
from support.texts import Net, residual


def test_before_and_after() -> None:
    """A branch goes, and neurons of the one that stays."""
    net = Net(lambda net, x: net.second(net.first(x)), first=residual(8), second=residual(8))
    program = capture(net, (torch.randn(3, 8),))
    selection = Selection({"second.ffn": [0, 3]}, removed=("first",))
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
        show(apply(program, selection)),
        """\
x: (!3, !8)
second.up.weight: (second.ffn:2, !8)
second.up.bias: (second.ffn:2)
linear_2 = linear(x, second.up.weight, second.up.bias) -> (!3, second.ffn:2)
relu_1 = relu(linear_2) -> (!3, second.ffn:2)
second.down.weight: (!8, second.ffn:2)
second.down.bias: (!8)
linear_3 = linear(relu_1, second.down.weight, second.down.bias) -> (!3, !8)
add_1 = add(x, linear_3) -> (!3, !8)
return add_1""",
    )
