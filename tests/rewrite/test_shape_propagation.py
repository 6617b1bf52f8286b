"""Shape propagation: every value gets the sizes that its operands give it, and promises are checked."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import capture, show
from fxprune.errors import VerifyError
from fxprune.ir import copy_graph, rebuild
from fxprune.rewrite.shape_propagation import propagate
from support.texts import mlp


def test_before_and_after() -> None:
    """Weights cut by hand: the values still have their old sizes, which the weights contradict, until the new ones are propagated."""
    program = capture(mlp(), (torch.randn(3, 8),))
    sizes = {"up.weight": (4, 8), "up.bias": (4,), "down.weight": (8, 4)}
    tensors = {name: nn.Parameter(torch.randn(size)) for name, size in sizes.items()}
    cut = rebuild(program, copy_graph(program), tensors)
    assert_expected_inline(
        show(cut),
        """\
x: (!3, !8)
up.weight: (!4, !8)
up.bias: (!4)
linear = linear(x, up.weight, up.bias) -> (!3, !32)
relu = relu(linear) -> (!3, !32)
down.weight: (!8, !4)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )
    propagate(cut, {})
    assert_expected_inline(
        show(cut),
        """\
x: (!3, !8)
up.weight: (ffn:4, !8)
up.bias: (ffn:4)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:4)
relu = relu(linear) -> (!3, ffn:4)
down.weight: (!8, ffn:4)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )


def test_a_broken_promise_is_an_error() -> None:
    program = capture(mlp(), (torch.randn(3, 8),))
    (relu,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    with pytest.raises(VerifyError, match=r"its dims promise sizes \(3, 4\), it has \(3, 32\)"):
        propagate(program, {relu: (3, 4)})
