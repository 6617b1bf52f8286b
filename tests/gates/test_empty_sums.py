"""Empty sums: a sum with no terms is its bias, or zero."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import analyze, capture, show
from fxprune.gates.empty_sums import remove_empty_sums
from support.texts import mlp


def test_before_and_after() -> None:
    """A linear none of whose inputs is left is its bias, and what fed it is gone."""
    program = capture(mlp(), (torch.randn(3, 8),))
    analysis = analyze(program)
    slim, left = remove_empty_sums(analysis, [analysis.axis("ffn")])
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
        show(slim),
        """\
x: (!3, !8)
down.bias: (!8)
expand_default = expand(down.bias, [3, 8]) -> (!3, !8)
return expand_default""",
    )
    assert left == ()


def test_before_and_after_of_a_sum_without_a_bias() -> None:
    """It is zero, of a size that is read from the input."""
    layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8, bias=False))
    program = capture(layers, (torch.randn(3, 8),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    analysis = analyze(program)
    assert_expected_inline(
        show(program),
        """\
input_1: (batch, !8)
0.weight: (ffn:32, !8)
0.bias: (ffn:32)
linear = linear(input_1, 0.weight, 0.bias) -> (batch, ffn:32)
relu = relu(linear) -> (batch, ffn:32)
2.weight: (!8, ffn:32)
linear_1 = linear(relu, 2.weight) -> (batch, !8)
return linear_1""",
    )
    assert_expected_inline(
        show(remove_empty_sums(analysis, analysis.axes)[0]),
        """\
input_1: (batch, !8)
sym_size_int = sym_size(input_1, 0)
full_default = full([sym_size_int, 8], 0, dtype=float32, device=cpu) -> (!3, !8)
return full_default""",
    )
