"""Pointwise operators: element by element, with broadcasting, so every dimension of the result is the operands' own.

`torch.Tag.pointwise` marks these operators, and the tag is the rule; the operators that lack the tag are listed in `UNTAGGED`.
`ZERO` lists those that keep a zero a zero, by law.
"""

from __future__ import annotations

from typing import Any

import torch

from fxprune.rules.facts import Dims, Shape
from fxprune.rules.notation import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import Rule, lookup, register
from fxprune.rules.traits import packet_of, packets

aten = torch.ops.aten

ZERO: dict[str, frozenset[Any]] = {
    "zero": packets("zeros_like zero"),
    "times": packets("mul multiply bitwise_and logical_and __and__"),
    "plus": packets("add sub rsub subtract maximum minimum bitwise_or logical_or __or__ lerp"),
    "first": packets("dropout feature_dropout copysign"),
    "over": packets("div divide true_divide floor_divide"),
    "value": packets("""
        pow masked_fill where clamp clamp_min clamp_max hardtanh threshold alpha_dropout feature_alpha_dropout
    """),
    "keep": packets("""
        neg relu relu6 gelu silu mish tanh sin asin sinh asinh atan tan atanh erf expm1 log1p abs sign
        sqrt round trunc floor ceil elu selu celu leaky_relu hardswish softshrink hardshrink prelu
        _prelu_kernel to _to_copy clone contiguous alias detach nan_to_num positive conj real
        imag type_as lift_fresh_copy lift_fresh tanhshrink frac deg2rad rad2deg _conj resolve_conj rrelu
        softsign square resolve_neg chalf absolute arcsin arcsinh arctan arctanh fix lift _neg_view _neg_view_copy _conj_copy
    """),
}
UNTAGGED = packets("""
    to _to_copy clone contiguous alias detach detach_ dropout alpha_dropout hardswish hardsigmoid
    hardtanh relu6 selu celu mish leaky_relu rrelu softshrink log_sigmoid floor_divide __and__ __or__
    __xor__ complex polar type_as zeros_like ones_like full_like empty_like
    where masked_fill lerp prelu multiply subtract divide true_divide square nan_to_num
    real imag conj _conj resolve_conj lift_fresh_copy lift_fresh float_power clamp_max clamp_min
    isfinite isinf isnan isneginf isposinf softplus threshold tanhshrink gelu feature_dropout
    feature_alpha_dropout fill copy isclose rsub not_equal greater less greater_equal less_equal
    bitwise_not logical_not negative log1p copy_ fill_ zero_ clamp_ add_ mul_ div_ sub_ masked_fill_
    relu_ silu_ hardswish_ hardsigmoid_ hardtanh_ relu6_ leaky_relu_ elu_ gelu_ mish_ sigmoid_ tanh_
    neg_ exp_ sqrt_ rsqrt_ pow_ dropout_ erf_ clamp_min_ clamp_max_ selu_ celu_ logical_or_ logical_and_
    bitwise_or_ bitwise_and_ abs_ sin_ cos_ threshold_ log_ reciprocal_ addcmul_ addcdiv_ lerp_
    alpha_dropout_ detach_copy alias_copy softsign
    __ior__ __iand__ __irshift__ floor_divide_ ldexp isreal resolve_neg chalf special_ndtr special_polygamma
    zero nan_to_num_ square_ float_power_ multiply_ subtract_ divide_ true_divide_ ldexp_ greater_ less_
    greater_equal_ less_equal_ feature_dropout_ feature_alpha_dropout_ not_equal_ bitwise_not_ logical_not_
    negative_ log1p_ bitwise_xor_ logical_xor_ fix_ softplus_ rsub_ absolute absolute_ arccos arccos_ arccosh
    arccosh_ arcsin arcsin_ arcsinh arcsinh_ arctan arctan_ arctan2 arctan2_ arctanh arctanh_ fix eq_ gt_ ge_ lt_
    le_ ne_ gcd_ lcm_ heaviside_ copysign_ rrelu_ lift _neg_view _neg_view_copy _conj_copy
""")

_SCALED = (aten.prelu, aten._prelu_kernel)
_OWN = (*_SCALED, aten.where)


def pointwise(op: Op) -> Shape:
    """Broadcast the operands' dims; a sum of two activations is evidence for a residual stream."""
    tensors = op.tensors()
    shapes = [op.flow.dims[node] for node in tensors]
    result = broadcast(op, shapes, op.out)
    if law(op.node.target) == "plus" and sum(node in op.flow.varies for node in tensors) > 1:
        op.role([dim for dim in result if _carried_by_two(dim, shapes)], "sum")
    return result


def _carried_by_two(dim: Any, shapes: list[Shape]) -> bool:
    return sum(any(one.size == dim.size for one in shape) for shape in shapes) > 1


def _where(op: Op) -> Dims:
    """Broadcast condition and values; without values, pin the condition's dims, whose positions are listed."""
    return pointwise(op) if "self" in op.arguments else op.listed()


def in_place(op: Op) -> Shape:
    """Return the dims of self, which an in-place operator writes, and unify the other operands' dims with them."""
    target, *others = [op.flow.dims[node] for node in op.tensors()]
    for shape in others:
        for dim, other in zip(reversed(target), reversed(shape), strict=False):
            op.unify(dim, other)
    return target  # type: ignore[no-any-return]


def law(target: Any) -> str:
    """Return the law about zeros of a pointwise operator, "lose" where none is listed."""
    packet = packet_of(target)
    return next((name for name, packets in ZERO.items() if packet in packets), "lose")


def is_pointwise(target: Any) -> bool:
    """Whether an operator works element by element on operands that broadcast, by its tag or by the list."""
    packet = packet_of(target)
    if packet in _SCALED or not isinstance(target, torch._ops.OpOverload):
        return False
    return packet in UNTAGGED or (torch.Tag.pointwise in target.tags and len(target._schema.returns) == 1)


def is_in_place(packet: Any) -> bool:
    """Whether an operator writes its first argument, by the schema of its first overload."""
    schema = getattr(packet, packet.overloads()[0])._schema
    alias = schema.arguments[0].alias_info if schema.arguments else None
    return bool(alias and alias.is_write)


def tagged_rule(target: Any) -> Rule | None:
    """Return the rule of an operator that has `torch.Tag.pointwise` and no rule of its own, else None."""
    if lookup(target) is not None or not isinstance(target, torch._ops.OpOverload):
        return None
    if torch.Tag.pointwise not in target.tags or len(target._schema.returns) != 1:
        return None
    return _rule_of(target.overloadpacket)


def _rule_of(packet: Any) -> Rule:
    return Rule(in_place, "lose") if is_in_place(packet) else Rule(pointwise, law(packet))


def prelu(op: Op) -> Shape:
    """Unify the weight with dimension 1 of the input."""
    shape = op.dims("self")
    weight = op.dims("weight")
    if len(shape) > 1 and weight:
        op.unify(shape[1], weight[-1 if len(weight) == 1 else 1])
    return shape


def _register() -> None:
    register(_SCALED, Rule(prelu, "first"))
    register((aten.where,), Rule(_where, law(aten.where)))
    for packet in UNTAGGED:
        if packet not in _OWN:
            register((packet,), _rule_of(packet))


_register()
