"""Partition: a sum over an axis as the sum of copies, each over a part of the axis."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline

from fxprune import Selection, analyze, capture, show, shrink
from fxprune.gates.partition import partition
from support.texts import mlp


def test_before_and_after() -> None:
    """Neurons 0 to 9 in one copy, the others in a second one; only the first keeps the bias of the sum."""
    program = capture(mlp(), (torch.randn(3, 8),))
    analysis = analyze(program)
    apart = partition(analysis, analysis.axis("ffn"), [range(10), range(10, 32)])
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
        show(apart),
        """\
x: (!3, !8)
up.part0.weight: (ffn.part0:32, !8)
up.part0.bias: (ffn.part0:32)
linear_2 = linear(x, up.part0.weight, up.part0.bias) -> (!3, ffn.part0:32)
up.part1.weight: (ffn.part1:32, !8)
up.part1.bias: (ffn.part1:32)
linear_3 = linear(x, up.part1.weight, up.part1.bias) -> (!3, ffn.part1:32)
relu_1 = relu(linear_2) -> (!3, ffn.part0:32)
relu_2 = relu(linear_3) -> (!3, ffn.part1:32)
down.part0.weight: (!8, ffn.part0:32)
down.bias: (!8)
linear_4 = linear(relu_1, down.part0.weight, down.bias) -> (!3, !8)
down.part1.weight: (!8, ffn.part1:32)
linear_5 = linear(relu_2, down.part1.weight, None) -> (!3, !8)
add_tensor = add(linear_4, linear_5) -> (!3, !8)
return add_tensor""",
    )
    slim = shrink(apart, Selection({"ffn.part0": range(10), "ffn.part1": range(10, 32)}))
    assert_expected_inline(
        show(slim),
        """\
x: (!3, !8)
up.part0.weight: (ffn.part0:10, !8)
up.part0.bias: (ffn.part0:10)
linear_2 = linear(x, up.part0.weight, up.part0.bias) -> (!3, ffn.part0:10)
up.part1.weight: (ffn.part1:22, !8)
up.part1.bias: (ffn.part1:22)
linear_3 = linear(x, up.part1.weight, up.part1.bias) -> (!3, ffn.part1:22)
relu_1 = relu(linear_2) -> (!3, ffn.part0:10)
relu_2 = relu(linear_3) -> (!3, ffn.part1:22)
down.part0.weight: (!8, ffn.part0:10)
down.bias: (!8)
linear_4 = linear(relu_1, down.part0.weight, down.bias) -> (!3, !8)
down.part1.weight: (!8, ffn.part1:22)
linear_5 = linear(relu_2, down.part1.weight, None) -> (!3, !8)
add_tensor = add(linear_4, linear_5) -> (!3, !8)
return add_tensor""",
    )
