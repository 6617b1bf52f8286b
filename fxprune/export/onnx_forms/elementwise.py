"""ONNX forms of functions of single elements, as their formulas."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxprune.export.onnx_forms.reductions import values_of
from fxprune.ir import attribute, call
from fxprune.ir.edit import add_buffer
from fxprune.rules import is_written, packet_of

aten = torch.ops.aten


_NEUTRAL = {aten.add: 0.0, aten.sub: 0.0, aten.mul: 1.0, aten.div: 1.0}


def kept_scalar(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return a sum with nearly 0, or a product with nearly 1, with this scalar as a tensor of one dim.

    A scalar is dropped by the exporter's clean-up, which takes 1e-8 for 0 and 1.00001 for 1: `log(x + 1e-15)` would become `log(x)`.
    """
    neutral, (one, scalar) = _NEUTRAL.get(packet_of(node.target)), (*node.args, None)[:2]
    if neutral is None or not isinstance(one, fx.Node) or not isinstance(scalar, float):
        return None
    if scalar == neutral or not math.isclose(scalar, neutral, rel_tol=1e-4, abs_tol=1e-7):
        return None
    value = node.meta["val"]
    buffer = add_buffer(graph, f"_scalar_{node.name}", torch.tensor([scalar], dtype=value.dtype))
    made = call(graph, node.target, (one, buffer, *node.args[2:]), dict(node.kwargs))
    return made if value.dim() else call(graph, aten.reshape.default, (made, []))


def hypotenuse(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return √(a² + b²)."""
    squares = [call(graph, aten.mul.Tensor, (each, each)) for each in node.args[:2]]
    return call(graph, aten.sqrt.default, (call(graph, aten.add.Tensor, tuple(squares)),))


def with_sign(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return |a| with the sign of b."""
    size, sign = node.args[:2]
    if not isinstance(sign, fx.Node):
        return None
    positive = call(graph, aten.abs.default, (size,))
    negative = call(graph, aten.neg.default, (positive,))
    return call(graph, aten.where.self, (call(graph, aten.signbit.default, (sign,)), negative, positive))


def extreme_number(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the larger (or smaller) of two, or the one that is a number."""
    one, other = node.args[:2]
    plain = aten.maximum if packet_of(node.target) is aten.fmax else aten.minimum
    both = call(graph, plain.default, (one, other))
    known = call(graph, aten.where.self, (call(graph, aten.isnan.default, (other,)), one, both))
    return call(graph, aten.where.self, (call(graph, aten.isnan.default, (one,)), other, known))


def angle_of(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return atan2(y, x): the exporter's form is wrong on the axes."""
    y, x = node.args[:2]
    return turned(graph, y, x)  # type: ignore[arg-type]


def turned(graph: fx.GraphModule, y: fx.Node, x: fx.Node) -> fx.Node:
    """Return the angle of a point: atan(y/x), half a turn more to the left, a quarter above and below, and 0 in the middle."""
    zero = call(graph, aten.eq.Scalar, (x, 0))
    safe = _filled(graph, x, zero, 1)
    angle = call(graph, aten.atan.default, (call(graph, aten.div.Tensor, (y, safe)),))
    below = call(graph, aten.lt.Scalar, (y, 0))
    half = _either(graph, below, y, -math.pi, math.pi)
    left = call(
        graph,
        aten.where.self,
        (call(graph, aten.lt.Scalar, (x, 0)), call(graph, aten.add.Tensor, (angle, half)), angle),
    )
    quarter = call(graph, aten.mul.Tensor, (call(graph, aten.sign.default, (y,)), math.pi / 2))
    return call(graph, aten.where.self, (zero, quarter, left))


def _filled(graph: fx.GraphModule, value: fx.Node, mask: fx.Node, by: float) -> fx.Node:
    return call(graph, aten.masked_fill.Scalar, (value, mask, by))


def _either(graph: fx.GraphModule, mask: fx.Node, like: fx.Node, yes: float, no: float) -> fx.Node:
    return _filled(graph, call(graph, aten.full_like.default, (like, no)), mask, yes)


def without_addend(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return a product whose addend counts zero times without it: torch does not read it, not even where it is no number."""
    bound = values_of(node)
    if bound["beta"] != 0:
        return None
    made = call(graph, aten.bmm.default, (bound["batch1"], bound["batch2"]))
    return made if bound["alpha"] == 1 else call(graph, aten.mul.Tensor, (made, bound["alpha"]))


def rectified(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the positive part of integers as a bound: ONNX Runtime's relu takes fractions only."""
    if _is_fraction(node):
        return None
    most = 6 if packet_of(node.target) is aten.relu6 else None
    return call(graph, aten.clamp.default, (node.args[0], 0, most))


def bounded(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return a clamp by constants of one element as one by numbers: the exporter gives all such limits of a value one name."""
    bound = values_of(node)
    if not any(isinstance(bound.get(name), fx.Node) for name in ("min", "max")):
        return None
    numbers = {name: _number(graph, bound[name]) for name in ("min", "max") if name in bound}
    if any(math.isnan(number) for number in numbers.values() if number is not None):
        return None
    source, dtype = bound["self"], node.meta["val"].dtype
    if source.meta["val"].dtype != dtype or source.meta["val"].shape != node.meta["val"].shape:
        return None
    return call(graph, aten.clamp.default, (source, numbers.get("min"), numbers.get("max")))


def _number(graph: fx.GraphModule, bound: Any) -> float | None:
    """Return a bound as a number, None where there is none; NaN where it is not known."""
    if not isinstance(bound, fx.Node):
        return bound  # type: ignore[no-any-return]
    value = attribute(graph, str(bound.target)) if bound.op == "get_attr" and not is_written(bound) else None
    if value is None or value.numel() != 1 or value.is_meta:
        return math.nan
    return value.item()  # type: ignore[no-any-return]


def rounded(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return integers as they are: ONNX rounds fractions only."""
    return None if _is_fraction(node) else node.args[0]  # type: ignore[return-value]


def _is_fraction(node: fx.Node) -> bool:
    return bool(node.meta["val"].is_floating_point())


def mean_slope(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return rrelu in evaluation as what it is then: leaky_relu with the mean of its slopes."""
    bound = values_of(node)
    if bound["training"]:
        return None
    return call(graph, aten.leaky_relu.default, (bound["self"], (bound["lower"] + bound["upper"]) / 2))
