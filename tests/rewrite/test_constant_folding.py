"""Constant folding: what depends on no input and no parameter is computed once."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import show
from fxprune.rewrite.constant_folding import fold_constants
from support.texts import Net, exported


def test_before_and_after() -> None:
    """Positions depend on no input: they become a buffer, whose dims are free (behind `arange` they are pinned)."""
    net = Net(
        lambda net, x: net.down(net.up(x) * torch.arange(4).exp()), up=nn.Linear(8, 4), down=nn.Linear(4, 8)
    )
    program = exported(net, torch.randn(3, 8))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (!4, !8)
up.bias: (!4)
linear = linear(x, up.weight, up.bias) -> (!3, !4)
arange = arange(4, device=cpu, pin_memory=False) -> (!4)
exp = exp(arange) -> (!4)
mul = mul(linear, exp) -> (!3, !4)
down.weight: (!8, !4)
down.bias: (!8)
linear_1 = linear(mul, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )
    fold_constants(program.graph_module)
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (ffn:4, !8)
up.bias: (ffn:4)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:4)
arange = arange(4, device=cpu, pin_memory=False) -> (!4)
_folded_exp: (ffn:4)
mul = mul(linear, _folded_exp) -> (!3, ffn:4)
down.weight: (!8, ffn:4)
down.bias: (!8)
linear_1 = linear(mul, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )


def test_before_and_after_of_a_fill() -> None:
    """Pure fills stay: only their size changes when dims shrink."""
    program = exported(Net(lambda net, x: x + torch.zeros(3, 8)), torch.randn(3, 8))
    before = show(program)
    fold_constants(program.graph_module)
    assert_expected_inline(
        before,
        """\
x: (!3, !8)
zeros = zeros([3, 8], device=cpu, pin_memory=False) -> (!3, !8)
add = add(x, zeros) -> (!3, !8)
return add""",
    )
    assert show(program) == before
