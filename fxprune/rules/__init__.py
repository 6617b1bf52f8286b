"""Operator rules: the effect of each ATen operator on dimensions, in one table; one family of operators per file.

To add a rule, declare it in notation where that suffices, else write a function that returns the dims of the result:

    declare(aten.linear, notation="* i, o i, o? -> * o", zero="affine")

    @rule(aten.unsqueeze, zero="keep")
    def unsqueeze(op): ...

An operator without a rule pins the dims of its operands and results. Third parties register rules with `fxprune.register_rule`, and
beside it the operator's kind (a product by a matrix, say) with `fxprune.rules.register_trait` (see `fxprune.rules.traits`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxprune.rules.aliasing import is_written
from fxprune.rules.aten import (
    assembly,
    attention,
    contraction,
    convolution,
    creation,
    indexing,
    linear_algebra,
    movement,
    normalization,
    pointwise,
    recurrent,
    reduction,
    refused,
    spectral,
    statistics,
    windows,
)
from fxprune.rules.facts import Contraction, Dims, Flow
from fxprune.rules.op import Op
from fxprune.rules.registry import REFUSED, RULES, Rule, declare, lookup, rule
from fxprune.rules.traits import Linear, Trait, packet_of, passes_value, register_trait, traits_of

FAMILIES = (
    assembly,
    attention,
    contraction,
    convolution,
    creation,
    indexing,
    linear_algebra,
    movement,
    normalization,
    pointwise,
    recurrent,
    reduction,
    refused,
    spectral,
    statistics,
    windows,
)


def find_rule(target: Any) -> Rule | None:
    """The rule of an operator: its row in the table, or the pointwise tag."""
    return lookup(target) or pointwise.tagged_rule(target)


def register_rule(
    operator: Any,
    notation: str | None = None,
    function: Callable[[Op], Dims] | None = None,
    zero: str = "lose",
) -> None:
    """Register the rule of an operator, in notation or as a function `Op -> dims`.

    `operator` is a packet such as `torch.ops.mylib.scale`; `zero` is its law about zeros (see `fxprune.rules.registry`).
    RuleError if it has a rule already; ValueError if neither notation nor function is given.
    """
    if notation is not None:
        declare(operator, notation=notation, zero=zero)
    elif function is not None:
        rule(operator, zero=zero)(function)
    else:
        raise ValueError(f"register_rule({operator}): give a notation or a function")


__all__ = [
    "FAMILIES",
    "REFUSED",
    "RULES",
    "Contraction",
    "Dims",
    "Flow",
    "Linear",
    "Op",
    "Rule",
    "Trait",
    "declare",
    "find_rule",
    "is_written",
    "packet_of",
    "passes_value",
    "register_rule",
    "register_trait",
    "rule",
    "traits_of",
]
