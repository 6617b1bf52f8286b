"""Implied closures: close an outer unit whose inner units are all closed, and everything inside a closed outer unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fxprune.analysis import Analysis, analyze
from fxprune.analysis.nested_axes import enclosing_atoms
from fxprune.dims import leaves
from fxprune.gates.gate import Gate, Gated

_Key: TypeAlias = tuple[str, str]
"""(axis, outer axis within each of whose units its own are counted; "": none)."""


@dataclass(frozen=True, eq=False)
class OpenUnits:
    """The units of an axis that stay: booleans [size], or [outer, size] within another axis."""

    axis: str
    within: str
    table: Tensor


def intersect_kept(units: Sequence[OpenUnits]) -> list[OpenUnits]:
    """Merge tables of the same axis into one: a unit stays where it stays in all of them."""
    found: dict[_Key, Tensor] = {}
    for unit in units:
        found[_key(unit)] = found[_key(unit)] & unit.table if _key(unit) in found else unit.table
    return [OpenUnits(axis, within, table) for (axis, within), table in found.items()]


def close_implied(analysis: Analysis, units: Sequence[OpenUnits]) -> list[OpenUnits]:
    """Return the tables with the implied units closed (see `_close_once`); an outer axis that inner units can close gets a table."""
    closers = [_key(unit) for unit in units if unit.within and _closes(analysis, unit.axis, unit.within)]
    found = _close_once(closers, {_key(unit): unit.table for unit in units})
    return [OpenUnits(axis, within, table) for (axis, within), table in found.items()]


def implied_closer(gated: Gated) -> Callable[[Mapping[Gate, Tensor]], dict[Gate, Tensor]]:
    """Return a function from the open gates to the gates that stay open once the implied ones are closed (see `_close_once`)."""
    analysis = analyze(gated.base)
    units = {(gate.of, gate.within): gate for gate in gated.gates if gate.kind == "units"}
    closers = [key for key in units if key[1] and _closes(analysis, *key)]

    def settle(open_: Mapping[Gate, Tensor]) -> dict[Gate, Tensor]:
        found = _close_once(closers, {key: open_[gate] for key, gate in units.items()})
        return {**open_, **{gate: found[key] for key, gate in units.items()}}

    return settle


def _key(unit: OpenUnits) -> _Key:
    return unit.axis, unit.within


def _close_once(closers: Sequence[_Key], tables: Mapping[_Key, Tensor]) -> dict[_Key, Tensor]:
    """Close each outer unit in which all units of one of the `closers` are closed, and all units within closed outer units."""
    outer = {axis: table for (axis, within), table in tables.items() if not within}
    for axis, within in closers:
        left = tables[axis, within].any(1)
        outer[within] = outer.get(within, torch.ones_like(left)) & left
    found = {(axis, ""): table for axis, table in outer.items()}
    for (axis, within), table in tables.items():
        if within:
            found[axis, within] = table & outer.get(within, torch.ones_like(table[:, 0]))[:, None]
    return found


def _closes(analysis: Analysis, inner: str, outside: str) -> bool:
    """Return whether closing all inner units of an outer unit closes the unit itself: every sum over the outer axis runs over both."""
    own, outer = analysis.axis(inner).leaf, analysis.axis(outside).leaf
    sums = [found.dim for found in analysis.flow.contractions if outer in leaves(found.dim)]
    return bool(sums) and all(own in enclosing_atoms(dim, outer) for dim in sums)
