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


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (2, 2, 5)),
    "conv2d, one image": (nn.Conv2d(4, 6, 3), (2, 5, 6)),
    "conv3d": (nn.Conv3d(4, 6, 2, stride=2), (2, 2, 5, 4, 6)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 2, stride=3), (2, 2, 3, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_channel_that_reads_constants_only_is_constant(name: str) -> None:
    """Half of the input channels are ones; three of the output channels have no weights on the others."""

    class Ones(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(torch.cat([x, torch.ones(x.shape)], x.dim() - rank - 1))
            return y

    layer, size = CONVOLUTIONS[name]
    rank = layer.weight.dim() - 2  # type: ignore[operator]
    weight: Tensor = layer.weight.transpose(0, 1) if "transpose" in name else layer.weight  # type: ignore[assignment, operator]
    with torch.no_grad():
        weight[:3, :2] = 0
    program = capture(Ones().eval(), (torch.randn(size),))
    node = program.outputs()[0]
    known = propagate_constants(program).masks[node].movedim(-rank - 1, 0)
    assert known[:3].all()
    one, other = (program(torch.randn(size)).movedim(-rank - 1, 0) for _ in range(2))
    assert torch.equal(one[:3], other[:3])
    assert not (known & (one != other)).any()


class Sum(nn.Module):
    """A sum over positions whose number is free; some features are the same at each."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.up.weight[:2], self.up.bias[:2] = 0, torch.tensor([0.0, 0.5])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).sum(1))
        return y


def test_a_sum_over_a_free_number_of_constants_is_known_only_where_it_is_zero() -> None:
    length = torch.export.Dim("length", min=2)
    program = capture(Sum(), (torch.randn(2, 5, 3),), dynamic_shapes={"x": {1: length}})
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.sum.dim_IntList)
    assert propagate_constants(program).masks[node].tolist() == [[True, False, False, False]] * 2
