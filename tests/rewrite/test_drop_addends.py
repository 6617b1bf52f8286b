"""Drop addends: what belongs to removed positions leaves sums and stacks, and the others are renumbered."""

from __future__ import annotations

from typing import Any

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import Selection, capture, show, shrink
from fxprune.ir import Program
from zoo.nets import build


def program(name: str) -> Program:
    module, inputs = build(name)
    return capture(module, kwargs=inputs)


def without(name: str, kept: list[int]) -> Program:
    return shrink(program(name), Selection({"router.experts": kept}))


def takes(found: Program) -> list[tuple[str, object]]:
    """What the graph takes from its gates: operator and position."""
    targets = (torch.ops.aten.select.int, torch.ops.aten.slice.Tensor)
    nodes = [
        node for node in found.graph.nodes if node.target in targets and "router" not in str(node.target)
    ]
    return [(str(node.target), node.args[2]) for node in nodes if node.args[0].name != "x"]


def test_slices_are_renumbered() -> None:
    assert takes(without("modules-weighed", [1, 3])) == [("aten.slice.Tensor", 0), ("aten.slice.Tensor", 1)]
    assert takes(without("modules-gates", [0, 3])) == [("aten.select.int", 0), ("aten.select.int", 1)]


def test_one_of_several_results_is_taken_alone() -> None:
    assert takes(without("modules-unbound", [2, 3])) == [("aten.select.int", 0), ("aten.select.int", 1)]
    assert takes(without("modules-chunked", [0, 1])) == [("aten.slice.Tensor", 0), ("aten.slice.Tensor", 1)]


class Three(nn.Module):
    """Three experts of one layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(6, 3), nn.ModuleList(nn.Linear(6, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        gates = self.router(x).sigmoid()
        return sum(gates[..., k : k + 1] * expert(x) for k, expert in enumerate(self.experts))


def test_before_and_after() -> None:
    before = capture(Three().eval(), (torch.zeros(2, 6),))
    assert_expected_inline(
        show(before),
        """\
x: (!2, !6)
router.weight: (router.experts:3?, !6)
router.bias: (router.experts:3?)
linear = linear(x, router.weight, router.bias) -> (!2, router.experts:3?)
sigmoid = sigmoid(linear) -> (!2, router.experts:3?)
slice_1 = slice(sigmoid, 1, 0, 1) -> (!2, 1)
experts.0.weight: (!5, !6)
experts.0.bias: (!5)
linear_1 = linear(x, experts.0.weight, experts.0.bias) -> (!2, !5)
mul = mul(slice_1, linear_1) -> (!2, !5)
add = add(mul, 0) -> (!2, !5)
slice_2 = slice(sigmoid, 1, 1, 2) -> (!2, 1)
experts.1.weight: (!5, !6)
experts.1.bias: (!5)
linear_2 = linear(x, experts.1.weight, experts.1.bias) -> (!2, !5)
mul_1 = mul(slice_2, linear_2) -> (!2, !5)
add_1 = add(add, mul_1) -> (!2, !5)
slice_3 = slice(sigmoid, 1, 2, 3) -> (!2, 1)
experts.2.weight: (!5, !6)
experts.2.bias: (!5)
linear_3 = linear(x, experts.2.weight, experts.2.bias) -> (!2, !5)
mul_2 = mul(slice_3, linear_3) -> (!2, !5)
add_2 = add(add_1, mul_2) -> (!2, !5)
return add_2""",
    )
    assert_expected_inline(
        show(shrink(before, Selection({"router.experts": [1, 2]}))),
        """\
x: (!2, !6)
router.weight: (router.experts:2?, !6)
router.bias: (router.experts:2?)
linear = linear(x, router.weight, router.bias) -> (!2, router.experts:2?)
sigmoid = sigmoid(linear) -> (!2, router.experts:2?)
slice_2 = slice(sigmoid, 1, 0, 1, 1) -> (!2, 1)
experts.1.weight: (!5, !6)
experts.1.bias: (!5)
linear_2 = linear(x, experts.1.weight, experts.1.bias) -> (!2, !5)
mul_1 = mul(slice_2, linear_2) -> (!2, !5)
slice_3 = slice(sigmoid, 1, 1, 2, 1) -> (!2, 1)
experts.2.weight: (!5, !6)
experts.2.bias: (!5)
linear_3 = linear(x, experts.2.weight, experts.2.bias) -> (!2, !5)
mul_2 = mul(slice_3, linear_3) -> (!2, !5)
add_2 = add(mul_1, mul_2) -> (!2, !5)
return add_2""",
    )


class Tasks(Three):
    """The same experts stacked, for a softmax."""

    def forward(self, x: Tensor) -> Any:
        stacked = torch.stack([expert(x) for expert in self.experts], 1)
        return torch.einsum("be,bed->bd", self.router(x).softmax(-1), stacked)


def test_before_and_after_of_stacks() -> None:
    before = capture(Tasks().eval(), (torch.zeros(2, 6),))
    assert_expected_inline(
        show(shrink(before, Selection({"router.experts": [1, 2]}))),
        """\
x: (!2, !6)
experts.1.weight: (!5, !6)
experts.1.bias: (!5)
linear_1 = linear(x, experts.1.weight, experts.1.bias) -> (!2, !5)
experts.2.weight: (!5, !6)
experts.2.bias: (!5)
linear_2 = linear(x, experts.2.weight, experts.2.bias) -> (!2, !5)
stack = stack([linear_1, linear_2], 1) -> (!2, router.experts:2?, !5)
router.weight: (router.experts:2?, !6)
router.bias: (router.experts:2?)
linear_3 = linear(x, router.weight, router.bias) -> (!2, router.experts:2?)
softmax = softmax(linear_3, -1) -> (!2, router.experts:2?)
einsum = einsum(be,bed->bd, [softmax, stack]) -> (!2, !5)
return einsum""",
    )
