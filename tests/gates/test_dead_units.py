"""Dead units: what zeros in the weights leave without effect, over several layers."""

from __future__ import annotations

import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import Program, capture
from fxprune.gates.dead_units import zero_dead_units


def test_before_and_after() -> None:
    """Nothing reads neuron 0 of the second layer, which alone read neuron 1 of the first: both are dead, and their weights are zero."""
    first, second, third = (
        nn.Linear(2, 2, bias=False),
        nn.Linear(2, 2, bias=False),
        nn.Linear(2, 2, bias=False),
    )
    with torch.no_grad():
        second.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
        third.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        first.weight.fill_(1.0)
    program = capture(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third), (torch.randn(3, 2),))
    zeroed, units = zero_dead_units(program)
    assert_expected_inline(
        weights(program),
        """\
0.weight: [[1, 1], [1, 1]]
2.weight: [[1, 1], [1, 0]]
4.weight: [[0, 1], [0, 1]]""",
    )
    assert_expected_inline(
        weights(zeroed),
        """\
0.weight: [[1, 1], [0, 0]]
2.weight: [[0, 0], [1, 0]]
4.weight: [[0, 1], [0, 1]]""",
    )
    assert {unit.axis: unit.table.tolist() for unit in units} == {
        "0.ffn": [True, False],
        "2.ffn": [False, True],
    }


def weights(program: Program) -> str:
    return "\n".join(f"{name}: {value.int().tolist()}" for name, value in program.tensors().items())
