"""Mixtures of experts as one operator: each group of rows meets the weight of its expert, and the groups are found by value."""

from __future__ import annotations

import torch

from fxprune.dims.dim import atom
from fxprune.rules.op import Op, Shape
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule("transformers::grouped_mm_fallback", zero="times")
def grouped_mm_fallback(op: Op) -> Shape:
    """`t i, e i o, e -> t o`."""
    return _grouped(op, "input", "weight")


@rule(aten._grouped_mm, zero="times")
def grouped_mm(op: Op) -> Shape:
    """`t i, e i o, e -> t o`; the forms without a dim of experts, and with a bias, have no rule."""
    if len(op.dims("self")) != 2 or len(op.dims("mat2")) != 3 or op.has("bias"):
        return op.opaque("this form of _grouped_mm has no rule")
    return _grouped(op, "self", "mat2")


def _grouped(op: Op, left: str, right: str) -> Shape:
    """Rows find their expert by where the groups end: experts that no row has may go, if the ends come of counts of the chosen."""
    rows, (expert, inner, outer) = op.dims(left), op.dims(right)
    numbered = op.chosen(op["offs"], "offsets")
    if numbered is None or numbered.size != expert.size:
        op.pin((expert, *op.dims("offs")), "rows find their expert by value")
    else:
        op.unify_all([expert, expert], [numbered, *op.dims("offs")])
    op.pin(rows[0], "rows find their expert by where groups end")
    op.unify(rows[1], inner)
    op.contract(inner, left, right)
    op.role(inner, "ffn")
    return rows[0], outer


@rule(aten.histc, zero="value")
def histogram(op: Op) -> Shape:
    """How often each number occurs: one bin for each position of the dim that is numbered, or all stays whole."""
    numbered = op.chosen(op["self"], "numbers") if op.node in op.flow.routing.counts else None
    if numbered is None or numbered.size != op.out[0]:
        return op.opaque(f"{op.node.target} counts values")
    op.pin(op.dims("self"), f"{op.node.target} counts values")
    bins = atom(op.out[0])
    op.unify(bins, numbered)
    op.size(numbered, "bins")
    op.size(numbered, "max", offset=-1)
    return (bins,)


@rule(aten.bincount, zero="lose")
def counts(op: Op) -> Shape:
    """How often each value occurs: which rows there are matters, and so does each bin."""
    return op.opaque(f"{op.node.target} counts values")
