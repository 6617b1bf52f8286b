# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Nets for the laws about zeros that depend on arguments (`VALUE`): exact ones, and counter-nets where an argument makes the law say no."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from support.silenced import DEPTH, GATE, UNITS, UP, Row, aten, no


def own_softmax(n: Any, x: Tensor) -> Tensor:
    return aten._softmax(n.up(x), -1, False)


def counted(n: Any, x: Tensor, top: int = UNITS - 1) -> Tensor:
    """How many positions chose each of the 8 units."""
    return torch.histc(n.up(x).topk(2, dim=-1).indices.to(x.dtype), UNITS, 0, top)


def written(n: Any, x: Tensor, base: Tensor) -> Tensor:
    """A base [b, t, 8] in which the two largest of the logits are written at their places."""
    values, numbers = n.up(x).topk(2, dim=-1)
    return base.scatter(-1, numbers, values)


def attended(n: Any, x: Tensor, value: Tensor) -> Tensor:
    """Attention of 8 heads, whose values are given."""
    return F.scaled_dot_product_attention(n.heads(n.q(x)), n.heads(n.k(x)), value)


def of_one_head(n: Any, x: Tensor) -> Tensor:
    """The values of one head [b, 1, t, 4], which all heads share."""
    return n.narrow(x)[:, None]


HEADS: dict[str, Any] = {"unit": ("q.weight", 0), "width": DEPTH}
LOGITS: dict[str, Any] = {"silent": (), "never": ("up",)}


VALUES: list[Row] = [
    Row("softmax", aten.softmax, lambda n, x: (n.up(x).softmax(-1) * n.gate(x).exp()).sum(-1), **LOGITS),
    Row("_softmax", aten._softmax, lambda n, x: (own_softmax(n, x) * n.gate(x).exp()).sum(-1), **LOGITS),
    Row(
        "softmax: and its logits elsewhere",
        aten.softmax,
        lambda n, x: (n.same(n.up(x)).softmax(-1) * n.gate(x).exp() + n.up(x).sin()).sum(-1),
        UP,
        never=("same",),
    ),
    Row(
        "softmax: its entropy",
        aten.softmax,
        lambda n, x: (n.up(x).softmax(-1) * n.up(x).softmax(-1).log()).sum(-1),
        **LOGITS,
        why="at zeros of its weights, log is infinite or no number",
    ),
    no(
        "softmax: over other positions",
        aten.softmax,
        lambda n, x: n.up(x).softmax(1).square().sum(-1),
    ),
    no(
        "_softmax: over other positions",
        aten._softmax,
        lambda n, x: aten._softmax(n.up(x), 1, False).square().sum(-1),
    ),
    Row(
        "softmax: of no router",
        aten.softmax,
        lambda n, x: (n.shift.softmax(0) * n.gate(x).exp()).sum(-1),
        unit=("shift", 0),
        why="softmax over it at softmax: the shares of the others change",
    ),
    Row(
        "softmax: over pairs of the axis",
        aten.softmax,
        lambda n, x: (n.up(x)[..., :, None] + n.up(x)[..., None, :]).softmax(-1).sum((-1, -2)),
        why="softmax over it at softmax: the shares of the others change",
    ),
    Row(
        "one_hot",
        aten.one_hot,
        lambda n, x: (F.one_hot(n.up(x).argmax(-1), UNITS) * n.gate(x).exp()).sum(-1),
        **LOGITS,
    ),
    Row(
        "one_hot: of numbers of something else",
        aten.one_hot,
        lambda n, x: (F.one_hot((x[..., 0] * 3).long().remainder(UNITS), UNITS) * n.gate(x).exp()).sum(-1),
        unit=("gate.weight", 0),
        why="positions are marked by value",
        pinned=True,
    ),
    Row("histc", aten.histc, lambda n, x: (counted(n, x) * n.gate(x).exp()).sum(-1), **LOGITS),
    Row(
        "histc: in bins of several numbers",
        aten.histc,
        lambda n, x: (counted(n, x, UNITS + 4) * n.gate(x).exp()).sum(-1),
        why="histc = aten.histc.default reads the numbers of the chosen",
        pinned=True,
    ),
    Row(
        "scatter",
        aten.scatter,
        lambda n, x: (written(n, x, torch.zeros_like(n.up(x))) * n.gate(x).exp()).sum(-1),
        **LOGITS,
    ),
    no(
        "scatter: into what stays",
        aten.scatter,
        lambda n, x: written(n, x, n.gate(x).exp()).sum(-1),
        **LOGITS,
    ),
    Row(
        "scatter: along the axis, at other places",
        aten.scatter,
        lambda n, x: n.up(x).scatter(1, n.gate(x).relu().long().clamp(0, 2), n.gate(x)).sin().sum(-1),
        UP + GATE,
    ),
    no(
        "scatter: a number at other places",
        aten.scatter,
        lambda n, x: n.up(x).scatter(1, n.gate(x).relu().long().clamp(0, 2), 1.5).sin().sum(-1),
    ),
    Row("cumsum", aten.cumsum, lambda n, x: n.up(x).cumsum(1).sin().sum(-1)),
    no("cumsum: of what stays", aten.cumsum, lambda n, x: n.up(x).exp().cumsum(1).sin().sum(-1)),
    no("cumsum: along the axis, read there", aten.cumsum, lambda n, x: n.up(x).cumsum(-1).sin().sum(-1)),
    Row("pow", aten.pow, lambda n, x: n.up(x).pow(2).sum(-1)),
    Row(
        "pow: of what is silenced, to a value",
        aten.pow,
        lambda n, x: (n.up(x) * n.up(x).abs().pow(-n.one.abs())).sum(-1),
        why="at zeros of its weights, pow_1 is infinite or no number",
    ),
    Row(
        "float_power: of what is silenced, to a negative power",
        aten.float_power,
        lambda n, x: (n.up(x) * n.up(x).float_power(-2)).sum(-1),
        why="at zeros of its weights, float_power is infinite or no number",
    ),
    no("pow: to the 0", aten.pow, lambda n, x: n.up(x).pow(0.0).sum(-1)),
    no("pow: of a negative exponent", aten.pow, lambda n, x: n.up(x).pow(-2).sum(-1)),
    no(
        "pow: of an exponent that is a value", aten.pow, lambda n, x: n.up(x).abs().pow(n.one - n.one).sum(-1)
    ),
    Row(
        "masked_fill",
        aten.masked_fill,
        lambda n, x: n.up(x).masked_fill(x[..., :1] > 0, 0.0).sum(-1),
    ),
    no(
        "masked_fill: with 1", aten.masked_fill, lambda n, x: n.up(x).masked_fill(x[..., :1] > 0, 1.0).sum(-1)
    ),
    no(
        "masked_fill: with a value",
        aten.masked_fill,
        lambda n, x: n.up(x).masked_fill(x[..., :1] > 0, n.one.sum()).sum(-1),
        at="sum_2",
    ),
    Row(
        "constant_pad_nd",
        aten.constant_pad_nd,
        lambda n, x: aten.constant_pad_nd(n.up(x), [0, 0, 1, 2]).sin().sum(-1),
    ),
    no(
        "constant_pad_nd: with 1",
        aten.constant_pad_nd,
        lambda n, x: aten.constant_pad_nd(n.up(x), [0, 0, 1, 2], 1.0).sum(-1),
    ),
    Row("pad", aten.pad, lambda n, x: F.pad(n.up(x), (0, 0, 1, 2)).sin().sum(-1)),
    Row("pad: by reflection", aten.pad, lambda n, x: F.pad(n.up(x).mT, (1, 2), "reflect").sin().sum(1)),
    no("pad: with 1", aten.pad, lambda n, x: F.pad(n.up(x), (0, 0, 1, 2), value=1.0).sum(-1)),
    Row(
        "where",
        aten.where,
        lambda n, x: torch.where(x[..., :1] > 0, n.up(x), n.gate(x)).sin().sum(-1),
        UP + GATE,
    ),
    Row(
        "where: or a literal zero",
        aten.where,
        lambda n, x: torch.where(x[..., :1] > 0, n.up(x), 0.0).sin().sum(-1),
    ),
    no("where: or a literal 1", aten.where, lambda n, x: torch.where(x[..., :1] > 0, n.up(x), 1.0).sum(-1)),
    no(
        "where: or a value without the axis",
        aten.where,
        lambda n, x: torch.where(x[..., :1] > 0, n.up(x), n.one).sum(-1),
    ),
    Row("clamp", aten.clamp, lambda n, x: n.up(x).clamp(-0.5, 0.75).sum(-1)),
    no("clamp: above 0", aten.clamp, lambda n, x: n.up(x).clamp(0.25, 0.75).sum(-1)),
    no("clamp: below 0", aten.clamp, lambda n, x: n.up(x).clamp(max=-0.25).sum(-1)),
    no("clamp: by a value", aten.clamp, lambda n, x: n.up(x).clamp(min=n.one.abs()).sum(-1)),
    Row("clamp_min", aten.clamp_min, lambda n, x: aten.clamp_min(n.up(x), -0.25).sum(-1)),
    no("clamp_min: above 0", aten.clamp_min, lambda n, x: aten.clamp_min(n.up(x), 0.25).sum(-1)),
    Row("clamp_max", aten.clamp_max, lambda n, x: aten.clamp_max(n.up(x), 0.25).sum(-1)),
    no("clamp_max: below 0", aten.clamp_max, lambda n, x: aten.clamp_max(n.up(x), -0.25).sum(-1)),
    Row("hardtanh", aten.hardtanh, lambda n, x: F.hardtanh(n.up(x), -0.5, 0.5).sum(-1)),
    no("hardtanh: above 0", aten.hardtanh, lambda n, x: F.hardtanh(n.up(x), 0.5, 1.5).sum(-1)),
    Row(
        "attention: the heads of values",
        aten.scaled_dot_product_attention,
        lambda n, x: attended(n, x, n.heads(n.v(x))).sin().sum(1),
        (("v.weight", 0), ("v.bias", 0)),
        **HEADS,
    ),
    no(
        "attention: heads of queries and keys alone",
        aten.scaled_dot_product_attention,
        lambda n, x: attended(n, x, of_one_head(n, x)).sin().sum(1),
        silent=(("q.weight", 0), ("q.bias", 0)),
        **HEADS,
    ),
    Row(
        "alpha_dropout: in evaluation",
        aten.alpha_dropout,
        lambda n, x: F.alpha_dropout(n.up(x), 0.5, training=False).sum(-1),
    ),
    no(
        "alpha_dropout: in training",
        aten.alpha_dropout,
        lambda n, x: F.alpha_dropout(n.up(x), 0.5, training=True).sum(-1),
    ),
    Row(
        "feature_alpha_dropout: in evaluation",
        aten.feature_alpha_dropout,
        lambda n, x: F.feature_alpha_dropout(n.up(x), 0.5, training=False).sum(-1),
    ),
    no(
        "feature_alpha_dropout: in training",
        aten.feature_alpha_dropout,
        lambda n, x: F.feature_alpha_dropout(n.up(x), 0.5, training=True).sum(-1),
    ),
]
