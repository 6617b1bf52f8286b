"""Constant propagation: what is called constant does not move when the inputs do."""

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture
from fxprune.analysis.constant_propagation import propagate_constants


class Twice(nn.Module):
    """A product whose addend is also one of its factors; half of its columns are constant."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place, self.weight = place, nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.ones(4, 2)], 1)
        factors = (x, self.weight) if self.place == 0 else (self.weight, x)
        return torch.addmm(x, *factors)


@pytest.mark.parametrize("place", [0, 1])
def test_a_product_is_not_constant_because_its_addend_is(place: int) -> None:
    program = capture(Twice(place), (torch.randn(4, 2),))
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default)
    found = propagate_constants(program)
    one, other = program(torch.zeros(4, 2)), program(torch.ones(4, 2))
    assert not (found.masks[node] & (one != other)).any()
