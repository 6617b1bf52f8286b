"""Reasons are true: each text, said of a net where it holds, and not of a neighbour where it doesn't."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze, capture
from support.texts import Net

F = nn.functional
draw = torch.Generator().manual_seed(0)
ids = torch.tensor([[1, 0, 2, 1]])
x = torch.randn(2, 6, generator=draw)
square = torch.randn(6, 6, generator=draw)
image = torch.randn(1, 3, 8, 8, generator=draw)
fixed = torch.tensor([2, 0, 1])
Forward = Callable[..., Any]

# The weight `w` (6 × 4) is read by the net; what stays whole of it, and why, is compared.
Case = tuple[str, tuple[Tensor, ...], Forward, Forward]

CASES: list[Case] = [
    # lookups
    (
        "rows are looked up by value",
        (ids,),
        lambda n, i: F.embedding(i, n.w),
        lambda n, i: n.w[fixed] * i.sum(),
    ),
    ("rows are looked up at fixed positions", (ids,), lambda n, i: n.w[fixed] * i.sum(), lambda n, i: n.w[i]),
    (
        "rows are looked up at fixed positions",
        (ids,),
        lambda n, i: n.w.index_select(0, fixed) * i.sum(),
        lambda n, i: n.w.index_select(0, i[0]),
    ),
    (
        "rows are pooled in bags",
        (ids,),
        lambda n, i: F.embedding_bag(i, n.w, per_sample_weights=n.v.expand(1, 4), mode="sum"),
        lambda n, i: F.embedding(i, n.w).sum(1),
    ),
    (
        "positions are looked up by value",
        (ids.expand(6, 4),),
        lambda n, i: n.w.gather(1, i),
        lambda n, i: n.w.gather(1, torch.zeros(6, 4, dtype=torch.long)) * i,
    ),
    (
        "gather reads a part of it",
        (ids,),
        lambda n, i: n.w.gather(1, i),
        lambda n, i: n.w.gather(1, i.expand(6, 4)),
    ),
    (
        "a mask chooses among its positions",
        (x.T[:, :1],),
        lambda n, a: n.w[a[:, 0] > 0].sum(0),
        lambda n, a: n.w[fixed].sum(0) * a,
    ),
    (
        "take_along_dim that flattens or broadcasts",
        (ids,),
        lambda n, i: torch.take_along_dim(n.w, i, 1),
        lambda n, i: torch.take_along_dim(n.w, i.expand(6, 4), 1),
    ),
    # writes
    (
        "rows are written by value",
        (ids[0, :2], x[:, :4]),
        lambda n, i, a: (n.w * 1).index_put((i,), a),
        lambda n, i, a: (n.w * 1).index_put((fixed[:2],), a) * i.sum(),
    ),
    (
        "rows are written at fixed positions",
        (ids[0, :2], x[:, :4]),
        lambda n, i, a: (n.w * 1).index_add(0, fixed[:2], a) * i.sum(),
        lambda n, i, a: (n.w * 1).index_add(0, i, a),
    ),
    (
        "positions are written by value",
        (ids.expand(6, 4), square[:, :4]),
        lambda n, i, a: (n.w * 1).scatter_add(1, i, a),
        lambda n, i, a: (n.w * 1).scatter_add(1, fixed[:1].expand(6, 4), a) * i,
    ),
    (
        "scatter writes a part of it",
        (ids.expand(3, 4), square[:3, :4]),
        lambda n, i, a: (n.w * 1).scatter(1, i, a),
        lambda n, i, a: (n.w * 1).scatter(1, i[:1].expand(6, 4), a.repeat(2, 1)),
    ),
    (
        "writes positions by value",
        (square[:, :4],),
        lambda n, a: (n.w * 1).masked_scatter(a > 0, a),
        lambda n, a: torch.where(a > 0, a, n.w),
    ),
    (
        "writes a part by position",
        (square[:2, :4],),
        lambda n, a: torch.slice_scatter(n.w * 1, a, 0, 1, 3),
        lambda n, a: (n.w * 1).masked_scatter(torch.ones(6, 4).bool(), a.repeat(3, 1)),
    ),
    # movements
    (
        "cuts it by numbers",
        (x[:, :1],),
        lambda n, a: n.w.tensor_split((1, 4), 0)[1] * a.sum(),
        lambda n, a: n.w.split((1, 3, 2), 0)[1] * a.sum(),
    ),
    (
        "a slice with step 2 that does not divide its size",
        (x[:, :1],),
        lambda n, a: n.odd[::2].sum() * a,
        lambda n, a: n.w[::2].sum() * a,
    ),
    (
        "a slice with step 2 that leaves out its first or last positions",
        (x[:, :1],),
        lambda n, a: n.w[:4:2].sum() * a,
        lambda n, a: n.odd[::2].sum() * a,
    ),
    (
        "a slice with step 2 reads it by position",
        (x[:, :1],),
        lambda n, a: n.w[::2].sum() * a,
        lambda n, a: n.odd[::2].sum() * a,
    ),
    (
        "a tensor says how often repeat_interleave repeats each position",
        (ids[0, :2],),
        lambda n, i: n.w[:2].repeat_interleave(fixed[:2], 0, output_size=2) * i.sum(),
        lambda n, i: n.w.repeat_interleave(2) * i.sum(),
    ),
    (
        "unbind: each position is a result of its own",
        (x,),
        lambda n, a: a @ n.w.unbind(1)[0],
        lambda n, a: a @ n.w[:, 0],
    ),
    (
        "a negative pad cuts",
        (x,),
        lambda n, a: F.pad(n.w, (-1, 1)).sum() * a,
        lambda n, a: F.pad(n.w, (1, 1)).sum() * a,
    ),
    ("depends on the order", (x,), lambda n, a: a @ n.w.cumprod(0), lambda n, a: a @ n.w),
    (
        "compares positions",
        (x,),
        lambda n, a: n.w.diagonal().sum() * a,
        lambda n, a: n.w.as_strided((2,), (5,)).sum() * a,
    ),
    (
        "reads positions by stride",
        (x,),
        lambda n, a: n.w.as_strided((2,), (5,)).sum() * a,
        lambda n, a: n.w.diagonal().sum() * a,
    ),
    # reductions and choices
    (
        "softmax over it",
        (x,),
        lambda n, a: (a @ n.w).log_softmax(-1).sum(-1),
        lambda n, a: (a @ n.w).log_softmax(0).sum(-1),
    ),
    (
        "gives positions along it",
        (x,),
        lambda n, a: (a @ n.w).sort(-1)[0].sum(-1),
        lambda n, a: (a @ n.w).count_nonzero(-1),
    ),
    (
        "counts along it",
        (x,),
        lambda n, a: (a @ n.w).count_nonzero(-1),
        lambda n, a: (a @ n.w).sort(-1)[0].sum(-1),
    ),
    (
        "classes are named by value",
        (x, ids[0, :2]),
        lambda n, a, i: F.cross_entropy(a @ n.w, i),
        lambda n, a, i: F.cross_entropy(a @ n.w, F.one_hot(i, 4).float()),
    ),
    (
        "values are looked up in it",
        (x,),
        lambda n, a: torch.bucketize(a, n.v),
        lambda n, a: torch.bucketize(a @ n.w, torch.arange(3.0)).sum(-1),
    ),
    # values by position
    (
        "random numbers are drawn by position",
        (x,),
        lambda n, a: (a @ n.w * torch.rand_like(a @ n.w)).sum(-1),
        lambda n, a: (a @ n.w * torch.ones_like(a @ n.w)).sum(-1),
    ),
    (
        "mixes all positions",
        (x,),
        lambda n, a: torch.fft.rfft(a @ n.w).abs().sum(-1),
        lambda n, a: torch.fft.rfft(a @ n.w, dim=0).abs().sum(-1),
    ),
    ("reads whole matrices", (square,), lambda n, a: torch.linalg.inv(a @ n.s), lambda n, a: a @ n.s),
    # convolutions
    (
        "places (spatial or sequence positions) are read with their neighbours",
        (image,),
        lambda n, a: F.conv2d(a, n.k).amax((2, 3)).sum(-1),
        lambda n, a: (a.sum((2, 3)) @ n.k.sum((2, 3)).T).sum(-1),
    ),
    # statistics of an inexact axis
    (
        "normalisation over it at layer_norm",
        (x,),
        lambda n, a: F.layer_norm(a @ n.w, (4,)).sum(-1),
        lambda n, a: F.layer_norm(a, (6,)) @ n.w[:, :1],
    ),
    (
        "aten.mean.dim over it at mean: the statistic changes",
        (x,),
        lambda n, a: (a @ n.w).mean(-1),
        lambda n, a: (a @ n.w).mean(0),
    ),
    (
        "no zeros of weights silence it at",
        (x,),
        lambda n, a: (a @ n.w).sigmoid().sum(-1),
        lambda n, a: (a @ n.w).relu().sum(-1),
    ),
    (
        "is infinite or no number",
        (x,),
        lambda n, a: (a @ n.w).sum(-1) + (1 / (a @ n.w)) @ n.u[:, 0],
        lambda n, a: (a @ n.w).sum(-1) + (a @ n.w) @ n.u[:, 0],
    ),
    # the graph's ends, operators without a rule
    ("an output of the graph", (x,), lambda n, a: a @ n.w, lambda n, a: (a @ n.w).sum(-1)),
    ("an input of the graph", (x,), lambda n, a: (a @ n.w).sum(-1), lambda n, a: n.w.sum() * a.sum()),
    (
        "it scales rows by their norm",
        (x,),
        lambda n, a: n.w.renorm(2, 0, 1.0).sum() * a,
        lambda n, a: n.w.sum() * a,
    ),
    ("distances mix rows pairwise", (x,), lambda n, a: torch.cdist(a, n.w.T), lambda n, a: a @ n.w),
    (
        "it places or reads positions by number",
        (square,),
        lambda n, a: (a * n.s).trace(),
        lambda n, a: (a * n.s).sum(),
    ),
]


def _net(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    parts = {"w": (6, 4), "v": (4,), "odd": (5, 4), "s": (6, 6), "k": (5, 3, 3, 3), "u": (4, 1)}
    weights = {name: nn.Parameter(torch.randn(shape)) for name, shape in parts.items()}
    return Net(forward, **weights)


def _said(forward: Forward, inputs: tuple[Tensor, ...]) -> list[str]:
    """Return all reasons that the analysis gives for parts that stay whole, and for axes that are inexact."""
    analysis = analyze(capture(_net(forward), inputs, training=True))
    return [refusal.why for refusal in analysis.refusals] + [axis.why_inexact for axis in analysis.axes]


@pytest.mark.parametrize(
    ("text", "inputs", "holds", "fails"), CASES, ids=[f"{i} {case[0]}" for i, case in enumerate(CASES)]
)
def test_a_reason_is_said_where_it_is_true(
    text: str, inputs: tuple[Tensor, ...], holds: Forward, fails: Forward
) -> None:
    said, unsaid = _said(holds, inputs), _said(fails, inputs)
    assert [why for why in said if text in why], said
    assert [why for why in unsaid if text in why] == []
