"""Sums of products whose terms come apart: what is added to them besides, and what is left where no term is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.rules.op import bind

aten = torch.ops.aten


@dataclass(frozen=True)
class Sum:
    """`addend` is the argument that is added once ("" for none), `along` the dimension it lies along (None: it broadcasts as it is).

    `bare` is the operator of the products alone; where it is another one, it takes what follows the addend.
    """

    addend: str = ""
    along: int | None = None
    bare: Any = None


#: operator: how its sum comes apart
SUMS: dict[Any, Sum] = {
    aten.linear.default: Sum("bias"),
    aten.addmm.default: Sum("self", bare=aten.mm.default),
    aten.mm.default: Sum(),
    aten.bmm.default: Sum(),
    aten.matmul.default: Sum(),
    aten.sum.dim_IntList: Sum(),
    aten.conv1d.default: Sum("bias", 1),
    aten.conv2d.default: Sum("bias", 1),
    aten.conv3d.default: Sum("bias", 1),
}


def sum_of(node: fx.Node) -> Sum | None:
    """How a node's sum comes apart; None where it doesn't, or where it is scaled (addmm's alpha and beta)."""
    arguments = bind(node) if node.target in SUMS else {}
    scaled = [name for name in ("alpha", "beta") if name in arguments and arguments[name].value != 1]
    return None if scaled else SUMS.get(node.target)
