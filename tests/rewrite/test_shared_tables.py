"""Shared tables: each layer chooses from a table that layers share, and layers that choose alike share it again."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import Program, Selection, analyze, show, shrink
from fxprune.rewrite.shared_tables import decouple_tables, drop_whole_choices, merge_equal_choices
from support.texts import Net, exported


def two_layers() -> Program:
    """Two layers of attention whose queries and keys are multiplied by the same cosines of positions."""

    def forward(net: Any, x: Tensor, places: Tensor) -> Any:
        cos = (places * net.rates).cos()
        for layer in (net.first, net.second):
            v = layer(x)
            q = v * cos
            x = nn.functional.scaled_dot_product_attention(q, q, v)
        return net.out(x)

    first, second, out = (nn.Linear(4, 4, bias=False) for _ in range(3))
    net = Net(forward, first=first, second=second, out=out, rates=nn.Parameter(torch.ones(4)))
    return exported(net, torch.randn(3, 5, 4), torch.arange(5.0)[:, None])


def test_before_and_after() -> None:
    """Each layer chooses its own positions of the cosines, so that the layers' query/key dims are two axes, not one."""
    program = two_layers()
    assert_expected_inline(
        show(program),
        """\
x: (!3, !5, !4)
places: (!5, !1)
rates: (qk:4)
mul = mul(places, rates) -> (!5, qk:4)
cos = cos(mul) -> (!5, qk:4)
first.weight: (qk:4, !4)
linear = linear(x, first.weight) -> (!3, !5, qk:4)
mul_1 = mul(linear, cos) -> (!3, !5, qk:4)
scaled_dot_product_attention = scaled_dot_product_attention(mul_1, mul_1, linear) -> (!3, !5, qk:4)
second.weight: (qk:4, qk:4)
linear_1 = linear(scaled_dot_product_attention, second.weight) -> (!3, !5, qk:4)
mul_2 = mul(linear_1, cos) -> (!3, !5, qk:4)
scaled_dot_product_attention_1 = scaled_dot_product_attention(mul_2, mul_2, linear_1) -> (!3, !5, qk:4)
out.weight: (!4, qk:4)
linear_2 = linear(scaled_dot_product_attention_1, out.weight) -> (!3, !5, !4)
return linear_2""",
    )
    assert_expected_inline(
        show(decouple_tables(program)),
        """\
x: (!3, !5, !4)
places: (!5, !1)
rates: (!4)
mul = mul(places, rates) -> (!5, !4)
cos = cos(mul) -> (!5, !4)
first.weight: (first.qk:4, !4)
linear = linear(x, first.weight) -> (!3, !5, first.qk:4)
_choice_cos: (first.qk:4)
index_select_default = index_select(cos, 1, _choice_cos) -> (!5, first.qk:4)
mul_1 = mul(linear, index_select_default) -> (!3, !5, first.qk:4)
scaled_dot_product_attention = scaled_dot_product_attention(mul_1, mul_1, linear) -> (!3, !5, first.qk:4)
second.weight: (second.qk:4, first.qk:4)
linear_1 = linear(scaled_dot_product_attention, second.weight) -> (!3, !5, second.qk:4)
_choice_cos_0: (second.qk:4)
index_select_default_1 = index_select(cos, 1, _choice_cos_0) -> (!5, second.qk:4)
mul_2 = mul(linear_1, index_select_default_1) -> (!3, !5, second.qk:4)
scaled_dot_product_attention_1 = scaled_dot_product_attention(mul_2, mul_2, linear_1) -> (!3, !5, second.qk:4)
out.weight: (!4, second.qk:4)
linear_2 = linear(scaled_dot_product_attention_1, out.weight) -> (!3, !5, !4)
return linear_2""",
    )


def test_before_and_after_of_choices_that_take_all() -> None:
    """Choices that still take everything in order are removed again, for files."""
    apart = decouple_tables(two_layers())
    assert show(apart) != show(two_layers())
    assert show(drop_whole_choices(apart)) == show(two_layers())


def test_before_and_after_of_equal_choices() -> None:
    """Where all layers keep the same dims, the table itself is cut."""
    apart = decouple_tables(two_layers())
    slim = shrink(apart, Selection({axis.name: [1, 3] for axis in analyze(apart).axes}))
    assert_expected_inline(
        show(slim),
        """\
x: (!3, !5, !4)
places: (!5, !1)
rates: (!4)
mul = mul(places, rates) -> (!5, !4)
cos = cos(mul) -> (!5, !4)
first.weight: (first.qk:2, !4)
linear = linear(x, first.weight) -> (!3, !5, first.qk:2)
_choice_cos: (first.qk:2)
index_select_default = index_select(cos, 1, _choice_cos) -> (!5, first.qk:2)
mul_1 = mul(linear, index_select_default) -> (!3, !5, first.qk:2)
scaled_dot_product_attention = scaled_dot_product_attention(mul_1, mul_1, linear) -> (!3, !5, first.qk:2)
second.weight: (second.qk:2, first.qk:2)
linear_1 = linear(scaled_dot_product_attention, second.weight) -> (!3, !5, second.qk:2)
_choice_cos_0: (second.qk:2)
index_select_default_1 = index_select(cos, 1, _choice_cos_0) -> (!5, second.qk:2)
mul_2 = mul(linear_1, index_select_default_1) -> (!3, !5, second.qk:2)
scaled_dot_product_attention_1 = scaled_dot_product_attention(mul_2, mul_2, linear_1) -> (!3, !5, second.qk:2)
out.weight: (!4, second.qk:2)
linear_2 = linear(scaled_dot_product_attention_1, out.weight) -> (!3, !5, !4)
return linear_2""",
    )
    assert_expected_inline(
        show(merge_equal_choices(slim)),
        """\
x: (!3, !5, !4)
places: (!5, !1)
rates: (first.qk:2)
mul = mul(places, rates) -> (!5, first.qk:2)
cos = cos(mul) -> (!5, first.qk:2)
first.weight: (first.qk:2, !4)
linear = linear(x, first.weight) -> (!3, !5, first.qk:2)
mul_1 = mul(linear, cos) -> (!3, !5, first.qk:2)
scaled_dot_product_attention = scaled_dot_product_attention(mul_1, mul_1, linear) -> (!3, !5, first.qk:2)
second.weight: (first.qk:2, first.qk:2)
linear_1 = linear(scaled_dot_product_attention, second.weight) -> (!3, !5, first.qk:2)
mul_2 = mul(linear_1, cos) -> (!3, !5, first.qk:2)
scaled_dot_product_attention_1 = scaled_dot_product_attention(mul_2, mul_2, linear_1) -> (!3, !5, first.qk:2)
out.weight: (!4, first.qk:2)
linear_2 = linear(scaled_dot_product_attention_1, out.weight) -> (!3, !5, !4)
return linear_2""",
    )
