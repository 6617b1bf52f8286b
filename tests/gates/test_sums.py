"""Sums of products: whichever operator computes them, they come apart over their axis, and without terms only the bias is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, shrink, verify
from fxprune.gates.empty_sums import remove_empty_sums
from fxprune.gates.partition import partition
from fxprune.ir import Program
from support.models import distance


class Summed(nn.Module):
    """A function of an input and of parameters `w`, `v` and `b` of these sizes."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(size)))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def stack(one: nn.Module, other: nn.Module) -> nn.Module:
    return nn.Sequential(one, nn.ReLU(), other)


#: a net with one axis, of 12 units, and the size of its input
NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (stack(nn.Conv1d(3, 12, 3), nn.Conv1d(12, 4, 2, padding=1)), (2, 3, 9)),
    "conv2d, one image": (stack(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 3)), (3, 9, 8)),
    "conv3d": (stack(nn.Conv3d(3, 12, (1, 2, 3)), nn.Conv3d(12, 4, 2, stride=2, dilation=2)), (2, 3, 5, 7, 6)),
    "conv3d, one volume": (stack(nn.Conv3d(3, 12, 2), nn.Conv3d(12, 4, 2, bias=False)), (3, 4, 5, 6)),
    "conv_transpose1d": (stack(nn.Conv1d(3, 12, 1), nn.ConvTranspose1d(12, 4, 3, stride=2)), (2, 3, 5)),
    "conv_transpose3d": (stack(nn.ConvTranspose3d(3, 12, 2), nn.ConvTranspose3d(12, 4, 2)), (2, 3, 4, 3, 2)),
    "baddbmm": (
        Summed(lambda s, x: torch.baddbmm(s.b, (x @ s.w).relu(), s.v), w=(3, 12), v=(2, 12, 4), b=(1, 1, 4)),
        (2, 5, 3),
    ),
    "addmv": (Summed(lambda s, x: torch.addmv(s.b, (x @ s.w).relu(), s.v), w=(3, 12), v=(12,), b=(1,)), (5, 3)),
}  # fmt: skip


def program_of(name: str) -> Program:
    torch.manual_seed(0)
    module, size = NETS[name]
    return capture(module.eval(), (torch.randn(size),))


def outputs(program: Program) -> Any:
    return program(*program.args)


@pytest.mark.parametrize("name", NETS)
def test_the_axis_is_exact_and_shrinks(name: str) -> None:
    program = program_of(name)
    (axis,) = analyze(program).axes
    assert (axis.size, axis.exact) == (12, True)
    selection = Selection({axis.name: range(0, 12, 5)})
    assert verify(program, shrink(program, selection), selection).relative < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_parts_add_up(name: str) -> None:
    program = program_of(name)
    analysis = analyze(program)
    apart = partition(analysis, analysis.axes[0], [range(3), range(3, 7), range(7, 12)])
    assert len(list(apart.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor))) == 2
    assert distance(outputs(apart), outputs(program)) < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_without_terms_the_bias_is_left(name: str) -> None:
    program = program_of(name)
    analysis = analyze(program)
    (axis,) = analysis.axes
    slim, _ = remove_empty_sums(analysis, [axis])
    biases = [value for key, value in program.tensors().items() if key in ("2.bias", "b")]
    assert [tuple(value.shape) for value in slim.tensors().values()] == [tuple(b.shape) for b in biases]
    with torch.no_grad():
        for reader in axis.readers:
            program.tensors()[reader].zero_()
    assert torch.equal(outputs(slim), outputs(program))
    assert bool((outputs(slim) == 0).all()) == (not biases)
