"""Dead-code elimination: nodes that no result needs, weights that no node reads, and operators that do nothing are removed."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import show
from fxprune.rewrite.dead_code import drop_idle, remove_dead
from support.texts import Net, exported


def test_before_and_after() -> None:
    """Attention and dropout go as well, which FX's own dead-code elimination keeps; so do weights that nothing reads any more."""

    def forward(net: Any, x: Tensor) -> Any:
        torch.dropout(nn.functional.scaled_dot_product_attention(x, x, net.unread(x)), 0.1, net.training)
        return net.kept(x)

    net = Net(forward, unread=nn.Linear(8, 8), kept=nn.Linear(8, 8))
    program = exported(net, torch.randn(3, 5, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !5, !8)
unread.weight: (unread.v:8, !8)
unread.bias: (unread.v:8)
linear = linear(x, unread.weight, unread.bias) -> (!3, !5, unread.v:8)
scaled_dot_product_attention = scaled_dot_product_attention(x, x, linear) -> (!3, !5, unread.v:8)
dropout = dropout(scaled_dot_product_attention, 0.1, False) -> (!3, !5, unread.v:8)
kept.weight: (!8, !8)
kept.bias: (!8)
linear_1 = linear(x, kept.weight, kept.bias) -> (!3, !5, !8)
return linear_1""",
    )
    assert remove_dead(program.graph_module) == 5
    assert_expected_inline(
        show(program),
        """\
x: (!3, !5, !8)
kept.weight: (!8, !8)
kept.bias: (!8)
linear_1 = linear(x, kept.weight, kept.bias) -> (!3, !5, !8)
return linear_1""",
    )


def test_before_and_after_of_idle_movements() -> None:
    """A whole slice and a view to the same sizes do nothing."""
    net = Net(lambda net, x: net.up(x)[:, :16].view(3, 16), up=nn.Linear(8, 16))
    program = exported(net, torch.randn(3, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (!16, !8)
up.bias: (!16)
linear = linear(x, up.weight, up.bias) -> (!3, !16)
alias = alias(linear) -> (!3, !16)
view = view(alias, [3, 16]) -> (!3, !16)
return view""",
    )
    drop_idle(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (!16, !8)
up.bias: (!16)
linear = linear(x, up.weight, up.bias) -> (!3, !16)
alias = alias(linear) -> (!3, !16)
return alias""",
    )
