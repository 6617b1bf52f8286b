"""Mutants: rules and laws with one fault each, all of which the fuzzer must catch.

A mutant patches the table of rules or the laws about zeros for a while; `operators` are the operators whose rule is wrong (empty where it
is a law that many share), so that programs without them need not run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import fx

from fxprune.analysis import exactness
from fxprune.analysis.exactness import LAWS, VALUE, ZeroPropagation, Zeros
from fxprune.dims import product
from fxprune.dims.dim import total
from fxprune.ir import bind, operands
from fxprune.rules import RULES, Op, Rule, find_rule, traits_of

aten = torch.ops.aten
Law = Callable[[ZeroPropagation, fx.Node], Zeros | None]
Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """A fault: its name, the operators whose rule is wrong, and the patch that puts it in."""

    name: str
    operators: tuple[Any, ...]
    patch: Patch


def _packets(names: str) -> tuple[Any, ...]:
    return tuple(getattr(aten, name) for name in names.split())


def _rule(packet: Any) -> Rule:
    rules = (find_rule(getattr(packet, overload)) for overload in packet.overloads())
    return next(rule for rule in rules if rule is not None)


def _with(names: str, change: Callable[[Rule], Rule]) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for packet in _packets(names):
            monkeypatch.setitem(RULES, packet, change(_rule(packet)))

    return patch


# --- laws about zeros -------------------------------------------------------------------------------------


def zero(names: str, law: str) -> Mutant:
    """Operators under a law about zeros that they do not obey."""
    change: Callable[[Rule], Rule] = lambda rule: replace(rule, zero=law)
    return Mutant(f"{names}: zero={law}", _packets(names), _with(names, change))


def unguarded(mutant: Mutant) -> Mutant:
    """The mutant without the check for divisions by zero, which would refuse its claims for another reason."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        mutant.patch(monkeypatch)
        _no_divisions(monkeypatch)

    return replace(mutant, patch=patch)


def _no_divisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.analysis.axes.divisions", lambda flow: [])


def law(name: str, what: str, wrong: Law) -> Mutant:
    """A wrong law, for all operators that share it."""
    return Mutant(f"law {name}: {what}", (), lambda monkeypatch: monkeypatch.setitem(LAWS, name, wrong))


def value(name: str, what: str, wrong: Law) -> Mutant:
    """A wrong law by value, of one operator."""
    packets = _packets(name)
    return Mutant(
        f"{name}: {what}", packets, lambda monkeypatch: monkeypatch.setitem(VALUE, packets[0], wrong)
    )


def _carriers(s: ZeroPropagation, node: fx.Node) -> list[fx.Node]:
    return [one for one in operands(node) if s.carries(one)]


def _any(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    return s.any(_carriers(s, node))


def _all(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    return s.all(_carriers(s, node))


def _first_operand(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    return s.of(node.args[0])


def _without_bias(s: ZeroPropagation, node: fx.Node) -> Zeros | None:
    linear, bound = traits_of(node.target).linear or exactness._OPERANDS, bind(node)
    return exactness._product(s, node, [bound[linear.input].value, bound[linear.weight].value])


# --- dims -------------------------------------------------------------------------------------------------


def without_statements(names: str, *verbs: str) -> Mutant:
    """Rules without some of their statements: `pin`, `inexact`, `size`, `contract`, `unify`."""

    def change(rule: Rule) -> Rule:
        def function(op: Op) -> Any:
            for verb in verbs:
                vars(op)[verb] = _larger if verb == "unify" else _nothing
            return rule.function(op)

        return replace(rule, function=function)

    return Mutant(f"{names}: no {' and '.join(verbs)}", _packets(names), _with(names, change))


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""


def _larger(left: Any, right: Any) -> Any:
    return right if left.size == 1 else left


def wrong(names: str, what: str, function: Callable[[Op, Rule], Any]) -> Mutant:
    """Rules with another function, which is given the right rule too."""

    def change(rule: Rule) -> Rule:
        return replace(rule, function=lambda op: function(op, rule))

    return Mutant(f"{names}: {what}", _packets(names), _with(names, change))


def _swapped(place: int) -> Callable[[Op, Rule], Any]:
    """The result's dim at a place has its factors or parts in the wrong order."""

    def function(op: Op, rule: Rule) -> Any:
        shape: list[Any] = list(rule.function(op))
        dim = shape[place]
        join = product if dim.kind == "product" else total
        shape[place] = join(reversed(dim.parts)) if dim.kind != "atom" else dim
        return tuple(shape)

    return function


def _reversed(op: Op, rule: Rule) -> Any:
    """The results of an operator that has several, in the wrong order."""
    return tuple(reversed(rule.function(op)))


def _as_operand(op: Op, rule: Rule) -> Any:
    """The result has the dims of the first operand, as if nothing moved."""
    return op.flow.dims[op.tensors()[0]]


LAW_MUTANTS = (
    zero("exp", "keep"),
    zero("sigmoid", "keep"),
    zero("cos", "keep"),
    zero("softplus", "keep"),
    zero("softmax", "keep"),
    zero("layer_norm", "keep"),
    zero("batch_norm", "keep"),
    unguarded(zero("reciprocal", "keep")),
    unguarded(zero("div", "times")),
    unguarded(zero("div", "keep")),
    Mutant("a division by what the zeros make zero is no matter", (), _no_divisions),
    zero("maximum", "times"),
    zero("sub", "first"),
    law("times", "any one factor of an outer product", _any),
    law("plus", "one operand is enough", _any),
    law("plus", "numbers do not matter", _all),
    law("keep", "one operand is enough", _any),
    law("keep", "places that come in do not matter", _all),
    law("affine", "the bias does not matter", _without_bias),
    law("first", "one operand is enough", _any),
    law("over", "one operand is enough", _any),
    value("pow", "any exponent", _first_operand),
    value("masked_fill", "any number", _first_operand),
    value("where", "one branch is enough", _any),
    value("clamp", "any bounds", _first_operand),
    value("clamp_min", "any bound", _first_operand),
    value("hardtanh", "any bounds", _first_operand),
    value("pad", "any number", _first_operand),
    value("scaled_dot_product_attention", "any operand", _any),
    zero("baddbmm", "times"),
)
MISSING_STATEMENTS = (
    without_statements("layer_norm", "inexact"),
    without_statements("rms_norm", "inexact"),
    without_statements("group_norm", "inexact"),
    without_statements("mean", "inexact"),
    without_statements("amax", "inexact"),
    without_statements("logsumexp", "inexact"),
    without_statements("prod", "inexact"),
    without_statements("linalg_vector_norm", "contract"),
    without_statements("_weight_norm", "inexact"),
    without_statements("softmax", "inexact"),
    without_statements("log_softmax", "inexact"),
    without_statements("cumprod", "pin"),
    without_statements("roll", "size"),
    without_statements("stack", "pin"),
    without_statements("index_select", "pin"),
    without_statements("gather", "pin"),
    without_statements("tril", "pin"),
    without_statements("sort", "pin"),
    without_statements("scaled_dot_product_attention", "pin"),
    without_statements("conv1d", "pin"),
    without_statements("max_pool2d", "pin"),
    without_statements("pixel_shuffle", "pin"),
    without_statements("fft_fft", "pin"),
    without_statements("lstm", "pin"),
    without_statements("reshape", "size"),
    without_statements("expand", "size"),
    without_statements("repeat", "size"),
    without_statements("repeat_interleave", "size"),
    without_statements("slice", "size"),
    without_statements("split_with_sizes", "size"),
    without_statements("conv2d", "size"),
    without_statements("group_norm", "size"),
    without_statements("layer_norm", "size"),
    without_statements("channel_shuffle", "size"),
    without_statements("linear", "contract"),
    without_statements("matmul", "contract"),
    without_statements("einsum", "contract"),
    without_statements("sum", "contract"),
    without_statements("conv2d", "contract"),
    without_statements("scaled_dot_product_attention", "contract"),
    without_statements("bilinear", "contract"),
    without_statements("add", "unify"),
    without_statements("mul", "unify"),
    without_statements("linear", "unify"),
    without_statements("cat", "unify"),
    without_statements("batch_norm", "unify"),
    without_statements("matmul", "unify"),
    without_statements("prelu", "unify"),
)
WRONG_ORDER = (
    wrong("flatten", "the product turned round", _swapped(-1)),
    wrong("repeat_interleave", "r x d for d x r", _swapped(1)),
    wrong("repeat", "d x r for r x d", _swapped(-1)),
    wrong("cat", "the sum turned round", _swapped(1)),
    wrong("channel_shuffle", "nothing shuffled", _as_operand),
    wrong("flip", "nothing turned round", _as_operand),
    wrong("roll", "nothing rolled", _as_operand),
    wrong("transpose", "nothing moved", _as_operand),
    wrong("permute", "nothing moved", _as_operand),
    wrong("pixel_unshuffle", "r x c for c x r", _swapped(1)),
    wrong("split_with_sizes", "the parts turned round", _reversed),
    wrong("conv1d", "the channels that come out are those that go in", lambda op, rule: (*op.dims("input")[:2], *rule.function(op)[2:])),
)  # fmt: skip
MUTANTS = (*LAW_MUTANTS, *MISSING_STATEMENTS, *WRONG_ORDER)
