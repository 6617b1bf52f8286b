# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Programs in float64, and how far rounding alone may move their outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture
from fxprune.ir import run_example
from fxprune.verification.float64 import rounding_noise, to_float64
from support.texts import Net


def test_all_that_floats_is_in_doubles() -> None:
    def forward(net: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
        table = net.table(ids)  # type: ignore[operator]
        return (x.to(torch.float32) + torch.ones(3, dtype=torch.float16)) * table + net.shift + ids[:, None]

    net = Net(forward, table=nn.Embedding(5, 3), shift=nn.Parameter(torch.ones(3)))
    program = capture(net, (torch.randn(2, 3), torch.tensor([1, 4])))
    wide = to_float64(program)
    assert {value.dtype for value in wide.tensors().values() if value.is_floating_point()} == {torch.float64}
    assert [value.dtype for value in wide.flat_inputs()] == [torch.float64, torch.int64]
    types = {
        a
        for node in wide.graph.nodes
        for a in (*node.args, *node.kwargs.values())
        if isinstance(a, torch.dtype)
    }
    assert torch.float32 not in types
    (expected,), (got,) = run_example(program), run_example(wide)
    assert got.dtype == torch.float64
    assert torch.allclose(got, expected.double(), atol=1e-6)
    assert {value.dtype for value in program.tensors().values()} == {torch.float32}


def test_the_noise_of_a_number_is_64_times_what_a_rounding_step_of_the_weights_moves_it() -> None:
    """A weight of 1 moves by 2⁻⁵² up or down, and its product with x by 2⁻⁵²·x: the smaller of the largest in its row and column."""
    net = Net(lambda net, x: x * net.weight, weight=nn.Parameter(torch.ones(2, 2)))
    program = to_float64(capture(net, (torch.tensor([[1.0, 8.0], [2.0, 1.0]]),)))
    (noise,) = rounding_noise(program, run_example(program))
    assert noise.dtype == torch.float64
    assert (noise / (64 * 2**-52)).tolist() == [[2.0, 8.0], [2.0, 2.0]]


@pytest.mark.parametrize("shape", [(), (0, 3), (4,)])
def test_the_noise_has_the_shape_of_the_output(shape: tuple[int, ...]) -> None:
    net = Net(lambda net, x: x * net.weight, weight=nn.Parameter(torch.tensor(3.0)))
    program = capture(net, (torch.ones(shape),))
    (noise,) = rounding_noise(program, run_example(program))
    assert noise.shape == shape


def test_what_is_not_finite_has_no_noise() -> None:
    net = Net(lambda net, x: x / net.weight.sub(net.weight), weight=nn.Parameter(torch.tensor(3.0)))
    program = capture(net, (torch.tensor([1.0, 0.0, -1.0]),))
    (noise,) = rounding_noise(program, run_example(program))
    assert noise.tolist() == [0.0, 0.0, 0.0]
