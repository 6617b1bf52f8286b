# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Exactness: which weights must be zero so that a sum without weights loses a unit, by one expression a law, and where none can do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxprune import Analysis, Selection, analyze, capture, shrink, zero_readers
from support.models import distance
from support.texts import Net

Expression = Callable[[Any, Tensor, Tensor], Tensor]

UP, BOTH = "up.bias up.weight", "gate.bias gate.weight up.bias up.weight"
NONE = "no zeros of weights"

#: expressions of two layers' results (rows, 4) of which the last dimension is summed, and the parameters that silence the sum
CASES: dict[str, tuple[Expression, str]] = {
    # a zero stays a zero
    "itself": (lambda n, h, g: h, UP),
    "relu": (lambda n, h, g: h.relu(), UP),
    "sigmoid": (lambda n, h, g: h.sigmoid(), NONE),
    "running sums over rows": (lambda n, h, g: h.cumsum(0), UP),
    "a place that is added": (lambda n, h, g: h[..., None].expand(*h.shape, 4).tanh().sum(-1), UP),
    "joined beside": (lambda n, h, g: torch.cat([h[..., None], g[..., None]], -1).sum(-1), BOTH),
    "joined beside what is not zero": (lambda n, h, g: torch.cat([h[..., None], g[..., None].exp()], -1).sum(-1), NONE),
    "one of several results": (lambda n, h, g: h.unsqueeze(1).repeat(1, 2, 1).chunk(2, 1)[0][:, 0], UP),
    "the values of attention": (lambda n, h, g: F.scaled_dot_product_attention(h[:, None], g[:, None], g[:, None])[:, 0], BOTH),
    "values that are not zero": (lambda n, h, g: F.scaled_dot_product_attention(h[:, None], g[:, None], g[:, None].exp())[:, 0], NONE),
    # one factor is enough, a constant before an activation
    "a product": (lambda n, h, g: h * g, UP),
    "one factor may be anything": (lambda n, h, g: h.exp() * g, "gate.bias gate.weight"),
    "no factor is zero": (lambda n, h, g: h.exp() * g.exp(), NONE),
    "a scale": (lambda n, h, g: h * n.scale, "scale"),
    "a scalar product": (lambda n, h, g: torch.einsum("bi,bi->b", h.exp(), g)[:, None], "gate.bias gate.weight"),
    "a scalar product without zeros": (lambda n, h, g: torch.einsum("bi,bi->b", h.exp(), g.exp())[:, None], NONE),
    "all pairs": (lambda n, h, g: (h + g) * n.scale + pairs(h, g).tanh().sum(-1), "gate.bias gate.weight scale up.bias up.weight"),
    "all pairs, one of them not zero": (lambda n, h, g: (h + g) * n.scale + pairs(h, g.exp()).tanh().sum(-1), NONE),
    "all sums of pairs": (lambda n, h, g: (h + g) * n.scale + (h[..., None] + g[..., None, :]).sum(-1), NONE),
    # each summand counts
    "a sum": (lambda n, h, g: h + g, BOTH),
    "a sum with a constant": (lambda n, h, g: h + n.scale, "scale up.bias up.weight"),
    "a sum with what has not the axis": (lambda n, h, g: h + n.one, NONE),
    "a sum with what is not zero": (lambda n, h, g: h - g.exp(), NONE),
    "a sum with a number": (lambda n, h, g: h + 0.5, NONE),
    "a sum with zero": (lambda n, h, g: h + 0, UP),
    "a difference from a number": (lambda n, h, g: 1 - h, NONE),
    "between two": (lambda n, h, g: torch.lerp(h, g, 0.3), BOTH),
    "between it and what has not the axis": (lambda n, h, g: torch.lerp(h, n.one, 0.3), NONE),
    # the first operand alone counts
    "divided by a number": (lambda n, h, g: h / 2, UP),
    "divided by what has the axis": (lambda n, h, g: h / (g.square() + 1), UP),
    "divided by its length": (lambda n, h, g: F.normalize(h, dim=-1).tanh(), UP),
    "divided by what the same zeros silence": (lambda n, h, g: h.sin() / h, NONE),
    "rows that are picked": (lambda n, h, g: h[torch.tensor([0, 1, 1])], UP),
    "rows that are looked up": (lambda n, h, g: h.index_select(0, torch.tensor([0, 2])), UP),
    "rows picked for each column": (lambda n, h, g: h.gather(0, (g[:2] > 0).long()), NONE),
    # what is divided by is never zero
    "divided by what is zero": (lambda n, h, g: h * (n.one / h.square()), "at zeros of its weights, div"),
    "divided by a sum of which a part is zero": (lambda n, h, g: h * (n.one / (h + g)), UP),
    "its inverse": (lambda n, h, g: h * h.square() ** -1, "at zeros of its weights, pow"),
    "its logarithm": (lambda n, h, g: h * h.square().log(), "at zeros of its weights, log"),
    "divided by what another's zeros leave": (lambda n, h, g: h.tanh() * (n.one / g), UP),
    # weights that sum over another axis
    "another linear": (lambda n, h, g: F.linear(h[..., None], n.column).sum(-1), UP),
    "another linear with a bias": (lambda n, h, g: F.linear(h[..., None], n.column, n.column[:, 0]).sum(-1), NONE),
    # laws by value
    "a power": (lambda n, h, g: h**3, UP),
    "a root": (lambda n, h, g: h.abs() ** 0.5, UP),
    "the power 0": (lambda n, h, g: h**0, NONE),
    "a power that is a weight": (lambda n, h, g: h**n.one, NONE),
    "filled with 0": (lambda n, h, g: h.masked_fill(g > 0, 0.0), UP),
    "filled with a number": (lambda n, h, g: h.masked_fill(g > 0, 0.7), NONE),
    "padded with 0": (lambda n, h, g: F.pad(h[..., None], (1, 1)).sum(-1), UP),
    "padded with a number": (lambda n, h, g: F.pad(h[..., None], (1, 1), value=0.5).sum(-1), NONE),
    "either": (lambda n, h, g: torch.where(h > g, h, g), BOTH),
    "either or 0": (lambda n, h, g: torch.where(g > 0, h, 0.0), UP),
    "either or a number": (lambda n, h, g: torch.where(g > 0, h, 0.7), NONE),
    "either or what is not zero": (lambda n, h, g: torch.where(g > 0, h, g.exp()), NONE),
    "bounds around 0": (lambda n, h, g: h.clamp(-0.5, 0.5), UP),
    "bounds from 0": (lambda n, h, g: h.clamp(0, 0.5), UP),
    "bounds up to 0": (lambda n, h, g: h.clamp(-0.5, 0), UP),
    "bounds above 0": (lambda n, h, g: h.clamp(0.1, 0.5), NONE),
    "bounds below 0": (lambda n, h, g: h.clamp(-0.5, -0.1), NONE),
    "a lower bound": (lambda n, h, g: h.clamp(min=-0.5), UP),
    "a lower bound above 0": (lambda n, h, g: h.clamp_min(0.1), NONE),
    "an upper bound": (lambda n, h, g: h.clamp_max(0.1), UP),
    "an upper bound below 0": (lambda n, h, g: h.clamp_max(-0.1), NONE),
    "a bound that is a value": (lambda n, h, g: torch.clamp(h, min=g), NONE),
    "an upper bound that is a value": (lambda n, h, g: torch.clamp(h, max=g), NONE),
    "bounds of hardtanh": (lambda n, h, g: F.hardtanh(h), UP),
    "bounds of hardtanh above 0": (lambda n, h, g: F.hardtanh(h, 0.1, 1.0), NONE),
    # what is written into it counts, too
    "written": (lambda n, h, g: h.scatter(0, (g > 0).long(), g), BOTH),
    "written where it is not zero": (lambda n, h, g: h.exp().scatter(0, (g > 0).long(), g), NONE),
    "written what is not zero": (lambda n, h, g: h.scatter(0, (g > 0).long(), g.exp()), NONE),
    "written a number": (lambda n, h, g: h.scatter(0, (g > 0).long(), 0.5), NONE),
}  # fmt: skip


def pairs(one: Tensor, other: Tensor) -> Tensor:
    return one[..., :, None] * other[..., None, :]


def analysis_of(expression: Expression) -> Analysis:
    torch.manual_seed(0)
    net = Net(
        lambda net, x: expression(net, net.up(x), net.gate(x)).sum(-1).asinh(),
        up=nn.Linear(6, 4),
        gate=nn.Linear(6, 4),
        scale=nn.Parameter(torch.randn(4)),
        one=nn.Parameter(torch.randn(1)),
        column=nn.Parameter(torch.randn(2, 1)),
    ).double()
    return analyze(capture(net, (torch.randn(3, 6, dtype=torch.float64),)))


@pytest.mark.parametrize("name", CASES)
def test_the_parameters_that_silence_a_sum(name: str) -> None:
    expression, expected = CASES[name]
    analysis = analysis_of(expression)
    axis = next(axis for axis in analysis.axes if any(member.name == "up.weight" for member in axis.members))
    said = " ".join(axis.readers) if axis.exact else axis.why_inexact
    assert said == expected if axis.exact else expected in said
    if axis.exact:
        half = Selection({axis.name: [0, 2]})
        slim, oracle = (each(analysis.program, half) for each in (shrink, zero_readers))
        assert distance(slim(*slim.args), oracle(*oracle.args)) < 1e-12
