"""Program text: weights, dims, literals, ties, dynamic sizes, several results."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import capture, show
from support.models import captured, hugging_face
from support.texts import Net, exported, mlp

AUTO = torch.export.Dim.AUTO


def test_axes_have_names_and_what_is_pinned_an_exclamation_mark() -> None:
    assert_expected_inline(
        show(capture(mlp(), (torch.randn(3, 8),))),
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


def test_units_among_which_is_chosen_have_a_question_mark() -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.Softmax(-1), nn.Linear(32, 4))
    assert show(capture(net, (torch.randn(3, 8),))).splitlines()[3:6] == [
        "linear = linear(input_1, 0.weight, 0.bias) -> (!3, ffn:32?)",
        "softmax = softmax(linear, -1) -> (!3, ffn:32?)",
        "2.weight: (!4, ffn:32?)",
    ]


def test_dynamic_sizes_have_the_names_of_the_inputs_sizes() -> None:
    program = capture(mlp(), (torch.randn(3, 13, 8),), dynamic_shapes=({0: AUTO, 1: AUTO},))
    assert_expected_inline(
        show(program),
        """\
x: (batch, length, !8)
up.weight: (ffn:32, !8)
up.bias: (ffn:32)
linear = linear(x, up.weight, up.bias) -> (batch, length, ffn:32)
relu = relu(linear) -> (batch, length, ffn:32)
down.weight: (!8, ffn:32)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (batch, length, !8)
return linear_1""",
    )


def test_products_and_sums() -> None:
    """Fused queries, keys and values of two heads; q and k share one size, v has its own."""

    def forward(net: Any, x: torch.Tensor) -> Any:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in net.qkv(x).split(8, -1))
        return net.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net = Net(forward, qkv=nn.Linear(16, 24), out=nn.Linear(8, 16))
    assert_expected_inline(
        show(capture(net, (torch.randn(3, 5, 16),))),
        """\
x: (!3, !5, !16)
qkv.weight: ((heads:2 x qkv.qk:4) + (heads:2 x qkv.qk:4) + (heads:2 x v:4), !16)
qkv.bias: ((heads:2 x qkv.qk:4) + (heads:2 x qkv.qk:4) + (heads:2 x v:4))
linear = linear(x, qkv.weight, qkv.bias) -> (!3, !5, (heads:2 x qkv.qk:4) + (heads:2 x qkv.qk:4) + (heads:2 x v:4))
split = split_with_sizes(linear, [8, 8, 8], -1) -> (!3, !5, heads:2 x qkv.qk:4), (!3, !5, heads:2 x qkv.qk:4), (!3, !5, heads:2 x v:4)
getitem = split[0] -> (!3, !5, heads:2 x qkv.qk:4)
getitem_1 = split[1] -> (!3, !5, heads:2 x qkv.qk:4)
getitem_2 = split[2] -> (!3, !5, heads:2 x v:4)
unflatten = reshape(getitem, [3, 5, 2, 4]) -> (!3, !5, heads:2, qkv.qk:4)
transpose = transpose(unflatten, 1, 2) -> (!3, heads:2, !5, qkv.qk:4)
unflatten_1 = reshape(getitem_1, [3, 5, 2, 4]) -> (!3, !5, heads:2, qkv.qk:4)
transpose_1 = transpose(unflatten_1, 1, 2) -> (!3, heads:2, !5, qkv.qk:4)
unflatten_2 = reshape(getitem_2, [3, 5, 2, 4]) -> (!3, !5, heads:2, v:4)
transpose_2 = transpose(unflatten_2, 1, 2) -> (!3, heads:2, !5, v:4)
scaled_dot_product_attention = scaled_dot_product_attention(transpose, transpose_1, transpose_2, scale=0.5) -> (!3, heads:2, !5, v:4)
transpose_3 = transpose(scaled_dot_product_attention, 1, 2) -> (!3, !5, heads:2, v:4)
flatten = flatten(transpose_3, 2) -> (!3, !5, heads:2 x v:4)
out.weight: (!16, heads:2 x v:4)
out.bias: (!16)
linear_1 = linear(flatten, out.weight, out.bias) -> (!3, !5, !16)
return linear_1""",
    )


def test_equal_roles_are_told_apart_by_their_layers() -> None:
    net = Net(lambda net, x: net.layers(x), layers=nn.Sequential(mlp(), mlp()))
    assert_expected_inline(
        show(capture(net, (torch.randn(3, 8),))),
        """\
x: (!3, !8)
layers.0.up.weight: (0.ffn:32, !8)
layers.0.up.bias: (0.ffn:32)
linear = linear(x, layers.0.up.weight, layers.0.up.bias) -> (!3, 0.ffn:32)
relu = relu(linear) -> (!3, 0.ffn:32)
layers.0.down.weight: (layers.rank:8, 0.ffn:32)
layers.0.down.bias: (layers.rank:8)
linear_1 = linear(relu, layers.0.down.weight, layers.0.down.bias) -> (!3, layers.rank:8)
layers.1.up.weight: (1.ffn:32, layers.rank:8)
layers.1.up.bias: (1.ffn:32)
linear_2 = linear(linear_1, layers.1.up.weight, layers.1.up.bias) -> (!3, 1.ffn:32)
relu_1 = relu(linear_2) -> (!3, 1.ffn:32)
layers.1.down.weight: (!8, 1.ffn:32)
layers.1.down.bias: (!8)
linear_3 = linear(relu_1, layers.1.down.weight, layers.1.down.bias) -> (!3, !8)
return linear_3""",
    )


def test_names_that_would_be_the_same_when_short_are_long() -> None:
    """`left.0.ffn` and `right.0.ffn` would both be `0.ffn`."""
    left, right = nn.Sequential(mlp()), nn.Sequential(mlp())
    net = Net(lambda net, x: net.left(x) + net.right(x), left=left, right=right)
    text = show(capture(net, (torch.randn(3, 8),)))
    assert "left.0.up.bias: (left.0.ffn:32)" in text
    assert "right.0.up.bias: (right.0.ffn:32)" in text


def test_a_tied_weight_names_the_one_that_it_is() -> None:
    table = nn.Embedding(20, 8)
    head = nn.Linear(8, 20, bias=False)
    head.weight = nn.Parameter(table.weight.detach())
    net = Net(lambda net, ids: net.head(net.table(ids)), table=table, head=head)
    assert_expected_inline(
        show(capture(net, (torch.zeros(3, 5, dtype=torch.long),))),
        """\
ids: (!3, !5)
table.weight: (!20, rank:8)
embedding = embedding(table.weight, ids) -> (!3, !5, rank:8)
head.weight = table.weight -> (!20, rank:8)
linear = linear(embedding, head.weight) -> (!3, !5, !20)
return linear""",
    )


def test_an_operator_without_a_rule_pins_what_it_touches() -> None:
    net = Net(lambda net, x: torch.linalg.det(net.up(x)), up=nn.Linear(8, 8))
    assert_expected_inline(
        show(capture(net, (torch.randn(8, 8),))),
        """\
x: (!8, !8)
up.weight: (!8, !8)
up.bias: (!8)
linear = linear(x, up.weight, up.bias) -> (!8, !8)
linalg_det = linalg_det(linear) -> ()
return linalg_det""",
    )


def test_values_that_are_no_tensors_and_several_results() -> None:
    net = Net(lambda net, x, flag=None: (x.new_full((), 0.5), *net.up(x).topk(2), None), up=nn.Linear(8, 32))
    assert_expected_inline(
        show(exported(net, torch.randn(3, 8), flag=True)),
        """\
x: (!3, !8)
flag
new_full = new_full(x, [], 0.5, pin_memory=False) -> ()
up.weight: (!32, !8)
up.bias: (!32)
linear = linear(x, up.weight, up.bias) -> (!3, !32)
topk = topk(linear, 2) -> (!3, !2), (!3, !2)
getitem = topk[0] -> (!3, !2)
getitem_1 = topk[1] -> (!3, !2)
return new_full, getitem, getitem_1, None""",
    )


def test_the_text_needs_no_weights() -> None:
    assert show(capture(mlp().to("meta"), (torch.randn(3, 8, device="meta"),))) == show(
        capture(mlp(), (torch.randn(3, 8),))
    )


def test_the_text_of_a_model_is_short_and_the_same_each_time() -> None:
    model, inputs = hugging_face("bert")
    text = show(capture(model, kwargs=inputs))
    assert text == show(captured("bert"))
    assert "encoder.layer.0.intermediate.dense.weight: (0.ffn:64, !32)\n" in text
    assert "aten" not in text
    assert max(map(len, text.splitlines())) < 250
