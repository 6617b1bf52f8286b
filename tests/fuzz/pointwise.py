# mypy: disable-error-code="no-any-return"
"""The pointwise operators of the rule table, by how many tensors they take, and operands on which they are finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fxprune.rules.aten.pointwise import UNTAGGED, is_in_place

#: random numbers, and uninitialised memory
RANDOM = frozenset("normal_ uniform_ bernoulli_ bernoulli empty_like native_dropout".split())  # noqa: SIM905
#: discontinuous or ill-conditioned operators: only on a bench, where operands are not near the jumps
JUMPS = frozenset(
    """sign sgn signbit round trunc floor ceil frac fix heaviside fmod remainder floor_divide rrelu rrelu_
    nextafter frexp nan_to_num_ eq ne lt gt le ge copysign copysign_
    isclose not_equal greater less greater_equal less_equal isfinite fix_ sign_ sgn_ round_ trunc_ floor_ ceil_ frac_
    remainder_ fmod_ floor_divide_ eq_ ne_ lt_ gt_ le_ ge_ to_ digamma polygamma lgamma lgamma_ digamma_ tan tan_ nextafter_
    special_zeta zeta igamma igammac igamma_ igammac_ heaviside_ ldexp_ dropout_ feature_dropout alpha_dropout
    alpha_dropout_ feature_alpha_dropout dropout erfinv erfinv_ logit logit_ special_airy_ai""".split()  # noqa: SIM905
)


def _tagged() -> Iterator[Any]:
    for name in sorted(dir(torch.ops.aten)):
        packet = getattr(torch.ops.aten, name)
        if not isinstance(packet, torch._ops.OpOverloadPacket) or name in RANDOM or name.startswith("_"):
            continue
        overloads = [getattr(packet, overload) for overload in packet.overloads() if "out" not in overload]
        if packet in UNTAGGED or any(torch.Tag.pointwise in overload.tags for overload in overloads):
            yield packet


def _fits(packet: Any, count: int) -> bool:
    """Whether a packet takes so many tensors of one shape and gives one of that shape, finite where its operands are in [0.1, 0.9]."""
    operands = [torch.linspace(0.1, 0.9, 6, dtype=torch.float64).reshape(2, 3) for _ in range(count)]
    try:
        result = packet(*(value.clone() for value in operands))
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return isinstance(result, Tensor) and result.shape == (2, 3) and bool(result.isfinite().all())


#: number of tensors -> operators, those of JUMPS included
BENCH = {count: [packet for packet in _tagged() if _fits(packet, count)] for count in (1, 2, 3)}


def _steady(packet: Any, count: int) -> bool:
    operands = [torch.full((1,), 0.5, dtype=torch.float64) for _ in range(count)]
    return packet._qualified_op_name[6:] not in JUMPS and packet(*operands).dtype == torch.float64


#: number of tensors -> operators for chains
TABLE = {count: [packet for packet in packets if _steady(packet, count)] for count, packets in BENCH.items()}


def _finite(packet: Any, count: int, ends: tuple[float, ...]) -> bool:
    """Whether the operator is finite at these operands, however they meet."""
    operands = torch.cartesian_prod(*[torch.tensor(ends, dtype=torch.float64)] * count)
    return bool(packet(*(x.clone() for x in operands.reshape(-1, count).unbind(-1))).isfinite().all())


def _where_finite(ends: tuple[float, ...]) -> set[tuple[int, Any]]:
    return {
        (count, packet)
        for count, packets in BENCH.items()
        for packet in packets
        if _finite(packet, count, ends)
    }


TOTAL = _where_finite((-2.0, -0.3, 0.0, 0.7, 2.0))
NOT_NEGATIVE = _where_finite((0.0, 0.3, 0.7, 2.0)) - TOTAL


def _ready(packet: Any, count: int, x: Tensor) -> Tensor:
    if (count, packet) in TOTAL:
        return x.clamp(-2, 2)
    return x.abs().clamp(max=2) if (count, packet) in NOT_NEGATIVE else x.sigmoid() * 0.8 + 0.1


def pointwise(packet: Any, *operands: Tensor) -> Tensor:
    """The operator where it is finite, else on operands between 0.1 and 0.9; an in-place one writes a copy."""
    ready = [_ready(packet, len(operands), x) for x in operands]
    return packet(ready[0].clone(), *ready[1:]) if is_in_place(packet) else packet(*ready)
