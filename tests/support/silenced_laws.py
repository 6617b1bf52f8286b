"""Nets for the laws about zeros that hold for whole families of operators (`LAWS`): exact ones, and counter-nets where a law says no."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from support.silenced import GATE, NO_ZEROS, UNITS, UP, Row, aten, no


def one_word(x: Tensor) -> Tensor:
    """Numbers of words, from the input."""
    return (x[..., 0] * 3).long().remainder(9)


def positive(x: Tensor) -> Tensor:
    """A value of 1 or more for each position, without the axis."""
    return x.abs().sum(-1, keepdim=True) + 1


def batched(n: Any, x: Tensor) -> Tensor:
    """The result of a batched product, whose batch is the axis: [8, b·t, 4]."""
    return torch.einsum("bti,uio->ubto", x, n.stacked).flatten(1, 2)


def bags(n: Any, x: Tensor) -> Any:
    """The largest values of three bags of words [3, 8]; the fourth result has their places."""
    return torch.embedding_bag(n.words.weight, one_word(x).flatten(), torch.tensor([0, 5, 9]), mode=2)


WORDS: dict[str, Any] = {"silent": (("words.weight", 1),), "unit": ("words.weight", 1)}


FAMILIES: list[Row] = [
    no("lose: sigmoid", aten.sigmoid, lambda n, x: n.up(x).sigmoid().sum(-1)),
    no("lose: exp", aten.exp, lambda n, x: n.up(x).exp().sum(-1)),
    no("lose: batch_norm", aten.batch_norm, lambda n, x: n.norm(n.up(x).mT).sum(1)),
    no("lose: ones_like", aten.ones_like, lambda n, x: (torch.ones_like(n.up(x)) + n.up(x).relu()).sum(-1)),
    Row("keep: relu", aten.relu, lambda n, x: n.up(x).relu().sum(-1)),
    Row("keep: gelu", aten.gelu, lambda n, x: F.gelu(n.up(x)).sum(-1)),
    Row("keep: a largest value over places", aten.amax, lambda n, x: n.up(x).amax(1).sum(-1)),
    Row(
        "keep: cat",
        aten.cat,
        lambda n, x: torch.cat([n.up(x), n.gate(x).sigmoid()], -1).tanh()[..., :UNITS].sum(-1),
    ),
    Row("keep: stack", aten.stack, lambda n, x: torch.stack([n.up(x), n.up(x).sin()], -1).sum((-1, -2))),
    Row("keep: repeat", aten.repeat, lambda n, x: n.up(x).repeat(1, 1, 2).sum(-1)),
    no("keep: expand adds a place", aten.expand, lambda n, x: (n.one.expand(UNITS) * n.up(x).exp()).sum(-1)),
    no(
        "keep: cat with what stays",
        aten.stack,
        lambda n, x: torch.stack([n.up(x), n.up(x).exp()], -1).sum((-1, -2)),
    ),
    Row(
        "zero: zeros_like", aten.zeros_like, lambda n, x: (torch.zeros_like(n.up(x)) + n.up(x).relu()).sum(-1)
    ),
    Row("times: mul", aten.mul, lambda n, x: (n.up(x).exp() * n.gate(x)).sum(-1), GATE),
    Row("times: by a parameter", aten.mul, lambda n, x: (n.up(x).exp() * n.shift).sum(-1), (("shift", 0),)),
    Row(
        "times: a Gram matrix",
        aten.matmul,
        lambda n, x: (n.up(x).relu().mT @ n.up(x).sin()).tanh().sum((-1, -2)),
    ),
    Row(
        "times: an outer product",
        aten.mul,
        lambda n, x: (n.up(x)[..., :, None].relu() * n.up(x)[..., None, :]).tanh().sum((-1, -2)),
    ),
    no("times: of two that stay", aten.mul, lambda n, x: (n.up(x).exp() * n.gate(x).sigmoid()).sum(-1)),
    no(
        "times: an outer product whose one side stays",
        aten.mul,
        lambda n, x: (n.up(x)[..., :, None] * n.up(x)[..., None, :].exp()).tanh().sum((-1, -2)),
    ),
    no(
        "times: a Gram matrix whose one side stays",
        aten.matmul,
        lambda n, x: (n.up(x).mT @ n.up(x).exp()).tanh().sum((-1, -2)),
    ),
    Row("plus: add", aten.add, lambda n, x: (n.up(x).relu() + n.gate(x).tanh()).abs().sum(-1), UP + GATE),
    Row("plus: a bias", aten.add, lambda n, x: (n.up(x) + n.shift).tanh().sum(-1), (*UP, ("shift", 0))),
    Row("plus: maximum", aten.maximum, lambda n, x: torch.maximum(n.up(x), n.gate(x)).sum(-1), UP + GATE),
    Row(
        "plus: lerp",
        aten.lerp,
        lambda n, x: torch.lerp(n.up(x), n.gate(x), x.sigmoid().sum(-1, keepdim=True)).sum(-1),
        UP + GATE,
    ),
    no("plus: a number", aten.add, lambda n, x: (n.up(x).relu() + 1.5).sum(-1)),
    no("plus: less than a number", aten.rsub, lambda n, x: torch.rsub(n.up(x).relu(), 1.5).sum(-1)),
    no("plus: a scalar parameter", aten.add, lambda n, x: (n.up(x).relu() + n.one).sum(-1)),
    no(
        "plus: what stays",
        aten.add,
        lambda n, x: (n.up(x).relu() + n.gate(x).exp()).sum(-1),
        silent=UP + GATE,
    ),
    no(
        "plus: the larger of a scalar", aten.maximum, lambda n, x: torch.maximum(n.up(x), n.one.exp()).sum(-1)
    ),
    no("plus: towards a scalar", aten.lerp, lambda n, x: torch.lerp(n.up(x), n.one, 0.25).sum(-1)),
    Row("over: div", aten.div, lambda n, x: (n.up(x) / positive(x)).sum(-1)),
    Row("over: floor_divide", aten.floor_divide, lambda n, x: (n.up(x) // 0.25).sum(-1)),
    Row(
        "first: embedding",
        aten.embedding,
        lambda n, x: n.words(one_word(x)).sin().sum(-1),
        (("words.weight", 1),),
        unit=("words.weight", 1),
    ),
    Row(
        "first: index_select",
        aten.index_select,
        lambda n, x: n.up(x).index_select(1, torch.tensor([0, 2, 2])).sum(-1),
    ),
    Row("first: index", aten.index, lambda n, x: n.up(x)[:, torch.tensor([0, 2, 2])].sum(-1)),
    no(
        "first: the sign of the axis alone",
        aten.copysign,
        lambda n, x: torch.copysign(n.one, n.up(x).exp()).sum(-1),
    ),
    no("over: divided by the axis alone", aten.div, lambda n, x: (n.one / n.up(x).sigmoid()).sum(-1)),
    Row("over: divided by the axis, too", aten.div, lambda n, x: (n.up(x) / n.gate(x).exp()).tanh().sum(-1)),
    Row("over: by its length", aten.div, lambda n, x: F.normalize(n.up(x), dim=-1).tanh().sum(-1)),
    Row("keep: a length over places", aten.linalg_vector_norm, lambda n, x: n.up(x).norm(dim=1).sum(-1)),
    no(
        "keep: a length of what stays",
        aten.linalg_vector_norm,
        lambda n, x: n.up(x).exp().norm(dim=1).sum(-1),
    ),
    no("first: of what stays", aten.div, lambda n, x: (n.up(x).exp() / positive(x)).sum(-1), at="sum_2"),
    Row("affine: linear", aten.linear, lambda n, x: n.up(x).sum(-1)),
    Row(
        "affine: convolution",
        aten.conv1d,
        lambda n, x: n.filters(x.mT).tanh().sum(1),
        (("filters.weight", 0), ("filters.bias", 0)),
        unit=("filters.weight", 0),
    ),
    Row(
        "affine: addmm",
        aten.addmm,
        lambda n, x: torch.addmm(n.shift, x.flatten(0, 1), n.direction.t()).sin().sum(-1),
        (("shift", 0), ("direction", 0)),
        unit=("shift", 0),
    ),
    Row(
        "affine: a product of each of a batch",
        aten.baddbmm,
        lambda n, x: torch.baddbmm(n.offset, x.flatten(0, 1).expand(UNITS, -1, -1), n.stacked).sin().sum(0),
        (("offset", 0), ("stacked", 0)),
        unit=("stacked", 0),
    ),
    Row(
        "affine: a batch through one layer without a bias",
        aten.linear,
        lambda n, x: F.linear(batched(n, x), n.inner.weight).tanh().sum(0),
        (("stacked", 0),),
        unit=("stacked", 0),
    ),
    no(
        "affine: a batch through one layer with a bias",
        aten.linear,
        lambda n, x: n.inner(batched(n, x)).tanh().sum(0),
        silent=(("stacked", 0),),
        unit=("stacked", 0),
    ),
    no(
        "affine: an addend without the axis",
        aten.addmm,
        lambda n, x: torch.addmm(n.one, x.flatten(0, 1), n.direction.t()).sin().sum(-1),
        silent=(("direction", 0),),
        unit=("direction", 0),
    ),
    no("value: no law of its own", aten.threshold, lambda n, x: F.threshold(n.up(x), 0.5, 7.0).sum(-1)),
    Row(
        "self: weight_norm",
        aten._weight_norm,
        lambda n, x: F.linear(x, torch._weight_norm(n.direction, n.length, 0)).sum(-1),
        (("length", 0),),
        unit=("length", 0),
    ),
    no(
        "self: weight_norm whose g stays",
        aten._weight_norm,
        lambda n, x: F.linear(x, torch._weight_norm(n.direction, n.length.exp(), 0)).sum(-1),
        silent=(("length", 0),),
        unit=("length", 0),
    ),
    Row(
        "self: weight_norm over the axis",
        aten._weight_norm,
        lambda n, x: (
            F.linear(n.up(x), torch._weight_norm(n.apart, n.one[:, None].expand(8, 1), 0)).sin().sum(-1)
        ),
        why="the weight is normalised over it at _weight_norm",
    ),
    Row(
        "times: beside a reciprocal",
        aten.mul,
        lambda n, x: (n.gate(x) * n.up(x).reciprocal()).sum(-1),
        GATE,
    ),
    Row(
        "lose: a reciprocal of what is silenced",
        aten.reciprocal,
        lambda n, x: (n.up(x).sin() * n.up(x).reciprocal()).sum(-1),
        why="at zeros of its weights, reciprocal is infinite or no number",
    ),
    Row(
        "lose: a logit of what is silenced",
        aten.logit,
        lambda n, x: (n.up(x).sigmoid() * n.shift * (n.shift.abs() / 9).logit()).sum(-1),
        (("shift", 0),),
        why="at zeros of its weights, logit is infinite or no number",
    ),
    Row(
        "lose: an area cosine of what is silenced",
        aten.acosh,
        lambda n, x: (n.up(x) * (n.up(x) * 100).square().acosh()).sum(-1),
        why="at zeros of its weights, acosh is infinite or no number",
    ),
    Row("first: embedding_bag", aten.embedding_bag, lambda n, x: bags(n, x)[0].sin().sum(-1), **WORDS),
    Row(
        "positions: of the largest values in a bag",
        operator.getitem,
        lambda n, x: bags(n, x)[3].to(x.dtype).sum(-1),
        **WORDS,
        why=NO_ZEROS + "sum_1",
    ),
]
