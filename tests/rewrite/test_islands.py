"""Islands taken out of their Program: each with its own inputs, results and names."""

import torch
from expecttest import assert_expected_inline

from fxprune import capture, show
from fxprune.rewrite.islands import in_model, island_program
from support.in_parts import OpenedUp
from support.models import distance


def test_before_and_after() -> None:
    """Weights lose the path of their module; nothing of the other islands is left."""
    torch.manual_seed(0)
    model, x = OpenedUp().eval(), torch.randn(2, 4)
    program = capture(model, (x,), within=["inner.0", "free"])
    assert_expected_inline(
        show(program),
        """\
inner_0_input: (!2, !4)
free_input: (!2, !4)
inner.0.weight: (!8, !4)
inner.0.bias: (!8)
linear = linear(inner_0_input, inner.0.weight, inner.0.bias) -> (!2, !8)
free.0.weight: (free.ffn:8, !4)
free.0.bias: (free.ffn:8)
linear_1 = linear(free_input, free.0.weight, free.0.bias) -> (!2, free.ffn:8)
tanh = tanh(linear_1) -> (!2, free.ffn:8)
free.2.weight: (!4, free.ffn:8)
free.2.bias: (!4)
linear_2 = linear(tanh, free.2.weight, free.2.bias) -> (!2, !4)
return linear, linear_2""",
    )
    part = island_program(program, "free")
    assert_expected_inline(
        show(part),
        """\
free_input: (!2, !4)
0.weight: (ffn:8, !4)
0.bias: (ffn:8)
linear_1 = linear(free_input, 0.weight, 0.bias) -> (!2, ffn:8)
tanh = tanh(linear_1) -> (!2, ffn:8)
2.weight: (!4, ffn:8)
2.bias: (!4)
linear_2 = linear(tanh, 2.weight, 2.bias) -> (!2, !4)
return linear_2""",
    )
    assert distance(part(x), model.free(x)) == 0
    assert distance(in_model(program)(x), model(x)) < 1e-6
