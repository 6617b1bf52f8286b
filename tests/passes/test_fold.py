"""Fold: one clean-up that changes no output."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import show
from fxprune.passes import Fold
from support.texts import Net, exported


def test_before_and_after() -> None:
    """Factors that save nothing are joined, constants computed, and views to the same sizes dropped."""
    net = Net(
        lambda net, x: net.up(net.down(x)).view(3, 8) * net.scale.exp(),
        down=nn.Linear(8, 6),
        up=nn.Linear(6, 8),
    )
    net.register_buffer("scale", torch.ones(8))
    program = exported(net, torch.randn(3, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
down.weight: (rank:6, !8)
down.bias: (rank:6)
linear = linear(x, down.weight, down.bias) -> (!3, rank:6)
up.weight: (!8, rank:6)
up.bias: (!8)
linear_1 = linear(linear, up.weight, up.bias) -> (!3, !8)
view = view(linear_1, [3, 8]) -> (!3, !8)
scale: (!8)
exp = exp(scale) -> (!8)
mul = mul(view, exp) -> (!3, !8)
return mul""",
    )
    assert_expected_inline(
        show(Fold().run(program).program),
        """\
x: (!3, !8)
up.weight_merged: (!8, !8)
up.bias_merged: (!8)
linear_1 = linear(x, up.weight_merged, up.bias_merged) -> (!3, !8)
_folded_exp: (!8)
mul = mul(linear_1, _folded_exp) -> (!3, !8)
return mul""",
    )
