"""Table of operator rules, keyed by OpOverloadPacket: the effect of an operator on dimensions and on zeros.

An operator of a library that may not be loaded is keyed by its qualified name, `transformers::grouped_mm_fallback`.

A rule is a function `Op -> dims of the result`, or a notation (see `fxprune.rules.notation`). `zero` is the operator's law about zeros,
from which exactness is proved (see `fxprune.analysis.exactness`):

    lose     the result may be non-zero where its operands are zero                    (exp, sigmoid, batch_norm)
    keep     zero where all operands that carry the dimension are zero                 (relu, view, cat)
    zero     zero everywhere                                                           (zeros)
    times    zero where any operand is zero                                            (mul, matmul)
    plus     zero where all operands are zero, and each carries the dimension          (add)
    first    zero where the first operand is zero                                      (dropout, embedding)
    over     zero where the first operand is zero, whatever dims the others have       (div)
    affine   (input or weight) and the bias where present, as its row of TRAITS says   (linear, convolution, addmm)
    value    a law of the operator's own, which may depend on its arguments            (pow, clamp, softmax)
    self     zero where `g` is zero                                                    (_weight_norm)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from fxprune.errors import RuleError
from fxprune.rules.facts import Dims
from fxprune.rules.notation import apply_notation
from fxprune.rules.op import Op
from fxprune.rules.traits import packet_of

RuleFunction: TypeAlias = Callable[[Op], Dims]

ZERO_LAWS = ("lose", "keep", "zero", "times", "plus", "first", "over", "affine", "value", "self")


@dataclass(frozen=True)
class Rule:
    """The effect of an operator on dimensions (`function`) and on zeros (`zero`); `notation` where it was declared in one."""

    function: RuleFunction
    zero: str
    notation: str = ""


RULES: dict[Any, Rule] = {}
REFUSED: dict[Any, str] = {}


def register(packets: tuple[Any, ...], entry: Rule) -> None:
    """Register one rule for several operators; RuleError where one has a rule already or is refused, or the law is unknown."""
    if entry.zero not in ZERO_LAWS:
        raise RuleError(f"zero={entry.zero!r} is no law about zeros; laws: {', '.join(ZERO_LAWS)}")
    for packet in packets:
        key = packet_of(packet)
        if key in RULES or key in REFUSED:
            raise RuleError(f"{key} has a rule already: one operator, one rule")
        RULES[key] = entry


def declare(*packets: Any, notation: str, zero: str = "lose", roles: dict[str, str] | None = None) -> None:
    """Register a rule in notation; `roles` maps words to the roles that their use is evidence for (`{"i": "ffn"}`)."""

    def function(op: Op) -> Dims:
        return apply_notation(op, notation, roles or {})

    register(packets, Rule(function, zero, notation))


F = TypeVar("F", bound=Callable[[Op], Any])


def rule(*packets: Any, zero: str = "lose") -> Callable[[F], F]:
    """Register the decorated function as the rule of these operators."""

    def decorate(function: F) -> F:
        register(packets, Rule(function, zero))
        return function

    return decorate


def refuse(*packets: Any, why: str) -> None:
    """Register operators as refused: the dims of their operands and results are pinned, for the reason `why`."""
    for packet in packets:
        if packet in RULES or packet in REFUSED:
            raise RuleError(f"{packet} has a rule already: one operator, one rule")
        REFUSED[packet] = why


def lookup(target: Any) -> Rule | None:
    """The rule of a node's target, or None."""
    packet = packet_of(target)
    return RULES.get(packet) or RULES.get(getattr(packet, "_qualified_op_name", None))
