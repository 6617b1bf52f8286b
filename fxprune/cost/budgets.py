"""Budgets: the quantities that a plan can be limited by, one row each, and the meters that give the cost of parts of a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from fxprune.cost.count import count_flops
from fxprune.ir import Point, Program

Key: TypeAlias = Any
Meter: TypeAlias = Callable[[Mapping[Key, tuple[str, Callable[[], Program]]]], dict[Key, float]]
"""Costs of programs by key, each given by its signature and a function that makes it; the first one is the reference (see `Clock`)."""


@dataclass(frozen=True)
class Budget:
    """Row of the table BUDGETS: what is limited, its unit, and the function that counts it.

    Where `count` is None the quantity is measured, and a plan is checked against the emitted file.
    """

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
    """Return a meter that counts by a row of BUDGETS, which must have a `count`."""
    count = BUDGETS[name].count
    assert count is not None

    def meter(wanted: Mapping[Key, tuple[str, Callable[[], Program]]]) -> dict[Key, float]:
        return {key: float(count(make(), None)) for key, (_, make) in wanted.items()}

    return meter
