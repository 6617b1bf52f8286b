"""Size arguments: integers of the graph that are sizes of dims follow the dims."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import Selection, capture, show, shrink, zero_readers
from support.models import distance
from support.texts import Net
from zoo.nets import build


def test_before_and_after() -> None:
    """One of two groups goes: the sizes that the view writes out follow, the literal −1 stays, and a view of a cut value is a reshape."""
    net = Net(
        lambda net, x: net.down((net.up(x).view(3, 2, -1) * net.scale).view(3, 8)),
        up=nn.Linear(8, 8),
        scale=nn.Parameter(torch.ones(2, 1)),
        down=nn.Linear(8, 8),
    )
    program = capture(net, (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (ffn:2 x up.ffn:4, !8)
up.bias: (ffn:2 x up.ffn:4)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:2 x up.ffn:4)
view = view(linear, [3, 2, -1]) -> (!3, ffn:2, up.ffn:4)
scale: (ffn:2, 1)
mul = mul(view, scale) -> (!3, ffn:2, up.ffn:4)
view_1 = view(mul, [3, 8]) -> (!3, ffn:2 x up.ffn:4)
down.weight: (!8, ffn:2 x up.ffn:4)
down.bias: (!8)
linear_1 = linear(view_1, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )
    assert_expected_inline(
        show(shrink(program, Selection({"ffn": [0]}))),
        """\
x: (!3, !8)
up.weight: (up.ffn:4, !8)
up.bias: (up.ffn:4)
linear = linear(x, up.weight, up.bias) -> (!3, up.ffn:4)
view = reshape(linear, [3, 1, -1]) -> (!3, 1, up.ffn:4)
scale: (1, 1)
mul = mul(view, scale) -> (!3, 1, up.ffn:4)
view_1 = reshape(mul, [3, 4]) -> (!3, up.ffn:4)
down.weight: (!8, up.ffn:4)
down.bias: (!8)
linear_1 = linear(view_1, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )


def test_before_and_after_of_a_symbolic_size() -> None:
    """Batch times groups, one symbolic number: it is divided by the old number of groups and multiplied by the new one."""

    def forward(net: Any, x: Tensor) -> Any:
        return net.down(net.up(x).view(x.shape[0] * 2, 4).cumsum(1).view(x.shape[0], 8))

    net = Net(forward, up=nn.Linear(8, 8), down=nn.Linear(8, 8))
    program = capture(net, (torch.randn(3, 8),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert_expected_inline(
        show(program),
        """\
x: (batch, !8)
sym_size_int_1 = sym_size(x, 0)
up.weight: (up.ffn:2 x up.ffn.2:4, !8)
up.bias: (up.ffn:2 x up.ffn.2:4)
linear = linear(x, up.weight, up.bias) -> (batch, up.ffn:2 x up.ffn.2:4)
mul = mul(sym_size_int_1, 2)
view = view(linear, [mul, 4]) -> (batch x up.ffn:2, up.ffn.2:4)
cumsum = cumsum(view, 1) -> (batch x up.ffn:2, up.ffn.2:4)
view_1 = view(cumsum, [sym_size_int_1, 8]) -> (batch, up.ffn:2 x up.ffn.2:4)
down.weight: (!8, up.ffn:2 x up.ffn.2:4)
down.bias: (!8)
linear_1 = linear(view_1, down.weight, down.bias) -> (batch, !8)
return linear_1""",
    )
    assert_expected_inline(
        show(shrink(program, Selection({"up.ffn": [0]}))),
        """\
x: (batch, !8)
sym_size_int_1 = sym_size(x, 0)
up.weight: (up.ffn.2:4, !8)
up.bias: (up.ffn.2:4)
linear = linear(x, up.weight, up.bias) -> (batch, up.ffn.2:4)
mul = mul(sym_size_int_1, 2)
floordiv = floordiv(mul, 2)
mul_1 = mul(floordiv, 1)
view = reshape(linear, [mul_1, 4]) -> (batch, up.ffn.2:4)
cumsum = cumsum(view, 1) -> (batch, up.ffn.2:4)
view_1 = reshape(cumsum, [sym_size_int_1, 4]) -> (batch, up.ffn.2:4)
down.weight: (!8, up.ffn.2:4)
down.bias: (!8)
linear_1 = linear(view_1, down.weight, down.bias) -> (batch, !8)
return linear_1""",
    )


def test_a_symbolic_size_is_right_at_other_batches() -> None:
    """4 groups become 2: at a batch of 3 that is 12 → 6, and at any other batch the number of groups is halved as well."""

    def forward(net: Any, x: Tensor) -> Any:
        return net.down(net.up(x).view(x.shape[0] * 4, 2).cumsum(1).view(x.shape[0], 8))

    net = Net(forward, up=nn.Linear(8, 8), down=nn.Linear(8, 8))
    program = capture(net, (torch.randn(3, 8),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    selection = Selection({"up.ffn": [0, 3]})
    slim, oracle = shrink(program, selection), zero_readers(program, selection)
    for batch in (2, 3, 5, 7):
        x = torch.randn(batch, 8)
        assert distance(slim(x), oracle(x)) < 1e-5


def test_a_size_with_an_offset_keeps_it() -> None:
    """A histogram over the numbers of 8 experts counts from 0 to 7; of 3 experts, from 0 to 2."""
    module, inputs = build("experts-sorted-rows")
    program = capture(module, kwargs=inputs)
    slim = shrink(program, Selection({"experts": [0, 3, 7]}))
    for each, bins in ((program, 8), (slim, 3)):
        (count,) = each.graph.find_nodes(op="call_function", target=torch.ops.aten.histc.default)
        assert count.args[1:] == (bins, 0, bins - 1)
