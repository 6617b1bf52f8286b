"""Empty: units that zeros in the weights have left without effect are removed."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline

from fxprune import capture, show
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
