"""Mixtures of experts as one operator: each group of rows meets the weight of its expert, and the groups are found by value."""

from __future__ import annotations

import torch

from fxprune.rules.op import Op, Shape
from fxprune.rules.registry import declare, rule

aten = torch.ops.aten

declare(
    "transformers::grouped_mm_fallback", notation="t i, e! i o, e! -> t o", zero="times", roles={"i": "ffn"}
)


@rule(aten._grouped_mm, zero="times")
def grouped_mm(op: Op) -> Shape:
    """`t i, e! i o -> t o`; the forms without a dim of experts, and with a bias, have no rule."""
    rows, weight = op.dims("self"), op.dims("mat2")
    if len(rows) != 2 or len(weight) != 3 or op.has("bias"):
        return op.opaque("this form of _grouped_mm has no rule")
    expert, inner, outer = weight
    op.pin((expert, *op.dims("offs")), "rows find their expert by value")
    op.unify(rows[1], inner)
    op.contract(inner, "self", "mat2")
    op.role(inner, "ffn")
    return rows[0], outer


@rule(aten.histc, aten.bincount, zero="lose")
def counts(op: Op) -> Shape:
    """How often each value occurs: which rows there are matters, and so does each bin."""
    return op.opaque(f"{op.node.target} counts values")
