"""Fold gate values: numbers between 0 and 1 go into the weights."""

from __future__ import annotations

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

from fxprune import capture, show
from fxprune.errors import SelectionError
from fxprune.gates.fold_values import fold_values
from fxprune.gates.gate import tensors_of
from fxprune.gates.insert import gate
from support.texts import mlp


def test_before_and_after() -> None:
    """A gate of 0.5 on a rank becomes 1, and the column of the factor that reads the rank is halved; a gate of 0 stays."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    nn.init.ones_(second.weight)
    on = gate(capture(nn.Sequential(first, second), (torch.randn(3, 2),)), ["rank"])
    module = on.module()
    assert_expected_inline(
        show(on.program),
        """\
input_1: (!3, !2)
0.weight: (rank:2, !2)
linear = linear(input_1, 0.weight) -> (!3, rank:2)
gates.rank: (rank:2)
view_default = view(gates.rank, [1, 2]) -> (1, rank:2)
1.weight: (!2, rank:2)
mul_tensor = mul(1.weight, view_default) -> (!2, rank:2)
linear_1 = linear(linear, mul_tensor) -> (!3, !2)
return linear_1""",
    )
    fold_values(on, module, {on.gates[0]: torch.tensor([0.5, 0.0])})
    after = tensors_of(module)
    assert after["1.weight"].tolist() == [[0.5, 0.0], [0.5, 0.0]]
    assert after["gates.rank"].tolist() == [1, 0]


def test_only_ranks_have_values_in_between() -> None:
    on = gate(capture(mlp(), (torch.randn(3, 8),)), ["ffn"])
    with pytest.raises(SelectionError, match="only gates of ranks can have values between 0 and 1"):
        fold_values(on, on.module(), {on.gates[0]: torch.full((32,), 0.5)})
