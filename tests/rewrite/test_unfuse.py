"""Unfuse: a fused matrix is split into its parts, one of which becomes factors; a tied one stays whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import analyze, capture, show
from fxprune.errors import RefusedError, SelectionError
from fxprune.ir import Program
from fxprune.passes import parse_pipeline
from fxprune.rewrite.factorize import factorize
from fxprune.rewrite.unfuse import unfuse
from support.gated import family
from support.models import distance
from support.texts import Net


def outputs(program: Program) -> Any:
    return program(*program.args, **program.kwargs)


def fused(program: Program) -> str:
    return next(name for name in program.tensors() if name.endswith("0.attn.c_attn.weight"))


def test_queries_come_apart_and_become_factors() -> None:
    """GPT-2's fused projection, its weights turned: only the values' third gets a rank."""
    program = family("gpt2")
    name = fused(program)
    apart = unfuse(program, {name: (32, 32, 32)})
    assert distance(outputs(apart), outputs(program)) < 1e-6
    assert [tuple(apart.tensors()[f"{name}_{i}"].shape) for i in range(3)] == [(32, 32)] * 3
    assert name not in apart.tensors()
    slim = factorize(apart, {f"{name}_2": 4}).program
    assert slim.parameter_count() == program.parameter_count() - 32 * 32 + 4 * 64
    assert [axis.size for axis in analyze(slim).axes if axis.role == "rank"] == [4]


class Two(nn.Module):
    """One product whose result is split again."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.both(x).split([4, 8], -1)
        out: Tensor = one.sum(-1) + other.relu().sum(-1)
        return out


@pytest.mark.parametrize(("sizes", "joined"), [((4, 8), False), ((6, 6), True)])
def test_a_product_that_is_split_alike_is_not_joined(sizes: tuple[int, ...], joined: bool) -> None:
    torch.manual_seed(0)
    program = capture(Two().eval(), (torch.randn(2, 3, 6),))
    apart = unfuse(program, {"both.weight": sizes})
    targets = {node.target for node in apart.graph.nodes}
    found = [
        each in targets for each in (torch.ops.aten.cat.default, torch.ops.aten.split_with_sizes.default)
    ]
    assert found == [joined, joined]
    assert distance(outputs(apart), outputs(program)) < 1e-6


def test_heads_go_as_before() -> None:
    program = family("gpt2")
    apart = unfuse(program, {fused(program): (32, 32, 32)})
    cut = [parse_pipeline("heads(ratio=0.5)").run(each).program for each in (program, apart)]
    assert cut[0].parameter_count() == cut[1].parameter_count()


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 10), nn.Linear(6, 10, bias=False), nn.Conv2d(6, 10, 3, padding=1)]
)
def test_linear_and_convolutions(layer: nn.Module) -> None:
    torch.manual_seed(0)
    shape = (2, 6, 5, 5) if isinstance(layer, nn.Conv2d) else (2, 3, 6)
    program = capture(nn.Sequential(layer, nn.ReLU()).eval(), (torch.randn(shape),))
    apart = unfuse(program, {"0.weight": (4, 6)})
    assert distance(outputs(apart), outputs(program)) < 1e-6
    assert [len(apart.tensors()[f"0.weight_{i}"]) for i in range(2)] == [4, 6]


def test_what_can_not_come_apart() -> None:
    program = family("gpt2")
    table = next(name for name, value in program.tensors().items() if value.shape[:1] == (99,))
    with pytest.raises(RefusedError, match="no matrix of one product alone"):
        unfuse(program, {table: (50, 49)})
    with pytest.raises(SelectionError, match=r"has 96 outputs, and parts of \[32, 32\] don't make them"):
        unfuse(program, {fused(program): (32, 32)})


def test_a_bias_that_trains_beside_a_frozen_weight_still_trains() -> None:
    layer = nn.Linear(6, 8)
    layer.weight.requires_grad_(False)
    apart = unfuse(capture(layer, (torch.randn(2, 6),)), {"weight": (4, 4)})
    assert {name: value.requires_grad for name, value in apart.tensors().items()} == {
        **{f"weight_{i}": False for i in range(2)},
        **{f"bias_{i}": True for i in range(2)},
    }


def test_before_and_after() -> None:
    net = Net(lambda net, x: torch.mul(*net.both(x).split((4, 4), -1)), both=nn.Linear(8, 8))
    program = capture(net, (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
both.weight: (!4 + !4, !8)
both.bias: (!4 + !4)
linear = linear(x, both.weight, both.bias) -> (!3, !4 + !4)
split_with_sizes = split_with_sizes(linear, [4, 4], -1) -> (!3, !4), (!3, !4)
getitem = split_with_sizes[0] -> (!3, !4)
getitem_1 = split_with_sizes[1] -> (!3, !4)
mul = mul(getitem, getitem_1) -> (!3, !4)
return mul""",
    )
    assert_expected_inline(
        show(unfuse(program, {"both.weight": (4, 4)})),
        """\
x: (!3, !8)
both.weight_0: (!4, !8)
both.bias_0: (!4)
linear_default = linear(x, both.weight_0, both.bias_0) -> (!3, !4)
both.weight_1: (!4, !8)
both.bias_1: (!4)
linear_default_1 = linear(x, both.weight_1, both.bias_1) -> (!3, !4)
mul = mul(linear_default, linear_default_1) -> (!3, !4)
return mul""",
    )
