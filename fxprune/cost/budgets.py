"""Budgets: what may be left of a program, and how the cost of a part of it is found. One row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from fxprune.cost.count import count_flops
from fxprune.ir import Point, Program

Key: TypeAlias = Any
Meter: TypeAlias = Callable[[Mapping[Key, tuple[str, Callable[[], Program]]]], dict[Key, float]]
"""Costs of some programs by key; each comes with its signature and a function that makes it. The first is what the others are parts of."""


@dataclass(frozen=True)
class Budget:
    """A row: what is limited, its unit, and whether it is measured (then a plan is checked against the emitted file)."""

    help: str
    unit: str
    count: Callable[[Program, Point | None], float] | None = None


BUDGETS: dict[str, Budget] = {
    "latency": Budget("milliseconds of a run, measured on the runtime at the batch, length and threads given", "ms"),
    "flops": Budget("multiplications and additions of products, convolutions and attention", "FLOP", count_flops),
    "params": Budget("parameters", "parameters", lambda program, point: program.parameter_count()),
    "bytes": Budget("bytes of parameters and buffers", "bytes", lambda program, point: program.parameter_bytes()),
}  # fmt: skip


def counting_meter(name: str) -> Meter:
    """A meter that counts."""
    count = BUDGETS[name].count
    assert count is not None

    def meter(wanted: Mapping[Key, tuple[str, Callable[[], Program]]]) -> dict[Key, float]:
        return {key: float(count(make(), None)) for key, (_, make) in wanted.items()}

    return meter
