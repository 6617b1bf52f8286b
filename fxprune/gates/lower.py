"""Lower gates: turn a gated program whose gates are all 0 or 1 into a smaller dense program that computes the same.

Closed regions are bypassed, closed units are removed. A unit of an outer axis is removed with the units within it where every sum over it
runs over them (a head without v dims), and stays where not (a head without q/k dims attends evenly). An empty sum becomes its bias. Where
the units of an outer axis keep unequal numbers of inner units, tensors are ragged, and there are three lowerings: LOWERINGS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fxprune.analysis import Analysis, Axis, analyze
from fxprune.dims import zero
from fxprune.dims.masks import KeptRows
from fxprune.errors import RefusedError, SelectionError
from fxprune.gates.dead_units import zero_dead_units
from fxprune.gates.empty_sums import remove_empty_sums
from fxprune.gates.gate import Gate, Gated, tensors_of
from fxprune.gates.implied import OpenUnits, close_implied, intersect_kept
from fxprune.gates.partition import partition
from fxprune.ir import Program, Selection, attribute, copy_graph, like, rebuild
from fxprune.ir.naming import part_name
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.shrink import labels, shrink

_Counts: TypeAlias = tuple[int, ...]

#: name: (grouping of units of unequal sizes: units with equal keys share a copy of the graph; description)
LOWERINGS: dict[str, tuple[Callable[[int, _Counts], object], str]] = {
    "pad": (lambda unit, counts: 0, "all units are as large as the largest; what is too much is zero"),
    "bucket": (lambda unit, counts: counts, "units of equal sizes are computed together"),
    "loop": (lambda unit, counts: unit, "every unit is computed by itself"),
}


@dataclass(frozen=True, eq=False)
class Lowered:
    """The smaller program, the regions and the axes that were removed whole (`gone`), and the units that stay, by axis.

    `padded` are the outer axes that could not be computed in parts, with the reason: they are padded instead.
    """

    program: Program
    regions: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    units: tuple[OpenUnits, ...] = ()
    padded: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ZeroedProgram:
    """A program whose closed units are silent and whose empty sums are gone, before its axes shrink; `units` are those that stay.

    `asked` are the tables of all axes, also of those in `gone`, of which no unit is left; `regions` are those that were bypassed.
    """

    program: Program
    units: tuple[OpenUnits, ...]
    asked: tuple[OpenUnits, ...] = ()
    regions: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def lower(
    gated: Gated,
    trained: nn.Module | Mapping[str, Tensor] | None = None,
    how: str | Mapping[str, str] = "pad",
) -> Lowered:
    """Lower a gated program to a smaller one; weights and gates come from `trained` (a module, or tensors by name), else from the program.

    `how` is a row of LOWERINGS, or one for each outer axis by name (see `fxprune.search.alternatives`, which measures them).
    SelectionError where a gate is neither 0 nor 1, or where there is no such row.
    """
    return lower_silenced(zero_closed(gated, trained), how)


def lower_silenced(ready: ZeroedProgram, how: str | Mapping[str, str] = "pad") -> Lowered:
    """Remove the closed units of a silenced program; `how` as for `lower`."""
    for name in [how] if isinstance(how, str) else how.values():
        if name not in LOWERINGS:
            raise SelectionError(f"no lowering {name!r}; lowerings: {', '.join(LOWERINGS)}")
    program, units, padded = ready.program, ready.units, dict[str, str]()
    for outer in ragged(ready):
        row = how if isinstance(how, str) else how.get(outer, "pad")
        try:
            program, units = copy_uneven(program, units, outer, row)
        except RefusedError as error:
            padded[outer] = str(error)
    slim = shrink(program, select_open(analyze(program), units))
    return Lowered(slim, ready.regions, ready.gone, ready.asked, padded)


def zero_closed(gated: Gated, trained: nn.Module | Mapping[str, Tensor] | None = None) -> ZeroedProgram:
    """Return the ungated program with the trained weights, zeros in place of closed gates, and without closed regions and empty sums.

    With gates of blocks, units that zeros leave dead are closed as well. SelectionError where a gate is neither 0 nor 1.
    """
    tensors = tensors_of(trained if trained is not None else gated.program.tensors())
    values = {gate: _binary(gate, value) for gate, value in gated.values(tensors).items()}
    closed = tuple(g.of for g, value in values.items() if g.kind == "region" and not bool(value))
    analysis = analyze(bypass(_ungated(gated, tensors, values), closed))
    units = [OpenUnits(g.of, g.within, value) for g, value in values.items() if g.kind == "units"]
    units = close_implied(analysis, [unit for unit in units if unit.axis in analysis.by_name])
    if any(gate.kind == "blocks" for gate in values):
        return close_dead_units(_silenced(analysis, units), units, closed)
    program, left, gone = _emptied(analysis, units)
    return ZeroedProgram(program, tuple(left), tuple(units), closed, gone)


def close_dead_units(
    program: Program,
    units: Sequence[OpenUnits] = (),
    regions: tuple[str, ...] = (),
    takes: Callable[[Axis | str], bool] = lambda part: True,
) -> ZeroedProgram:
    """Close the units that zeros in the weights leave dead, before the axes shrink; `units` are tables whose closed units are silent.

    `takes` says which axes may lose units, and which weights constants may move from.
    """
    emptier, found = zero_dead_units(program, takes)
    analysis = analyze(emptier)
    both = close_implied(analysis, intersect_kept([*units, *found]))
    cleared, left, gone = _emptied(analysis, both)
    return ZeroedProgram(cleared, tuple(left), tuple(both), regions, gone)


def _binary(gate: Gate, value: Tensor) -> Tensor:
    """Return which gates are open, booleans on the CPU; SelectionError where one is neither 0 nor 1."""
    value = value.detach().cpu()
    half = (value != 0) & (value != 1)
    if bool(half.any()):
        found = float(value[half].flatten()[0])
        raise SelectionError(
            f"gate {gate.name} has the value {found:g}; only 0 (closed) and 1 (open) can be lowered: settle it first"
        )
    return value.bool()


def _ungated(gated: Gated, tensors: Mapping[str, Tensor], values: Mapping[Gate, Tensor]) -> Program:
    """Return the program without gates, with the trained weights; closed blocks are zeros in them."""
    base = gated.base
    given = {name: tensors[name].detach() for name in base.tensors() if name in tensors}
    for gate, value in values.items():
        if gate.grid is not None:
            given[gate.of] = _blocked(given[gate.of], gate.grid.spread(value))
        if gate.bias:
            given[gate.bias] = _blocked(given[gate.bias], _some(gate, value))
    kept = {name: like(attribute(base.graph_module, name), value) for name, value in given.items()}
    return rebuild(base, copy_graph(base), kept)


def _some(gate: Gate, value: Tensor) -> Tensor:
    """Return which outputs have an open block."""
    assert gate.grid is not None
    return gate.grid.spread(value).any(1 - gate.outputs)


def _blocked(weight: Tensor, open_: Tensor) -> Tensor:
    return weight * open_.to(weight.device).reshape(*open_.shape, *(1,) * (weight.dim() - open_.dim()))


def _emptied(
    analysis: Analysis, units: Sequence[OpenUnits]
) -> tuple[Program, list[OpenUnits], tuple[str, ...]]:
    """Zero the readers of closed units and replace empty sums; return (the program, the units of the axes left, the axes removed)."""
    program = _silenced(analysis, units)
    again = analyze(program)
    empty = [again.axis(unit.axis) for unit in units if not bool(unit.table.any())]
    gone = tuple(axis.name for axis in empty)
    if not empty:
        return program, list(units), gone
    hollowed, there = remove_empty_sums(again, empty)
    left = [unit for unit in units if unit.axis in there and unit.within in ("", *there)]
    return hollowed, left, gone


def _silenced(analysis: Analysis, units: Sequence[OpenUnits]) -> Program:
    """Zero the readers of every closed unit."""
    program, flow = analysis.program, analysis.flow
    nodes = program.reads()
    tensors = program.tensors()
    for unit in units:
        axis = analysis.axis(unit.axis)
        kept = unit.table if not unit.within else KeptRows(analysis.axis(unit.within).leaf, unit.table)
        for name in axis.readers if not bool(unit.table.all()) else ():
            tensors[name] = zero(tensors[name], flow.dims[nodes[name]], {axis.leaf: kept})
    return rebuild(program, copy_graph(program), tensors).replace(labels=labels(analysis, {}))


def ragged(ready: ZeroedProgram) -> list[str]:
    """Return the outer axes whose open units keep unequal numbers of units of some axis within."""
    known = analyze(ready.program).by_name
    outer = dict.fromkeys(unit.within for unit in ready.units if unit.within)
    return [name for name in outer if name in known and len(set(_counts(ready.units, name).values())) > 1]


def _counts(units: Sequence[OpenUnits], outer: str) -> dict[int, _Counts]:
    """Return the number of units of each inner axis that stay within each open outer unit; at least one, for a dimension can't be empty."""
    inner = [unit.table for unit in units if unit.within == outer]
    alive = next((unit.table for unit in units if unit.axis == outer and not unit.within), None)
    open_ = range(len(inner[0])) if alive is None else alive.nonzero().flatten().tolist()
    return {i: tuple(max(1, int(table[i].sum())) for table in inner) for i in open_}


def copy_uneven(
    program: Program, units: Sequence[OpenUnits], outer: str, how: str
) -> tuple[Program, tuple[OpenUnits, ...]]:
    """Copy the nodes that carry `outer` for each group of its units, by the row `how` of LOWERINGS; return (the program, its units).

    RefusedError where the axis can't be computed in parts.
    """
    key, _ = LOWERINGS[how]
    groups: dict[object, list[int]] = {}
    for unit, counts in _counts(units, outer).items():
        groups.setdefault(key(unit, counts), []).append(unit)
    if len(groups) == 1:
        return program, tuple(units)
    analysis = analyze(program)
    size = analysis.axis(outer).size
    copies = partition(analysis, analysis.axis(outer), list(groups.values()))
    own = [unit for unit in units if outer in (unit.axis, unit.within)]
    others = [unit for unit in units if unit not in own]
    if not any(unit.axis == outer for unit in own):
        own.append(OpenUnits(outer, "", torch.ones(size, dtype=torch.bool)))
    apart = [torch.isin(torch.arange(size), torch.tensor(group)) for group in groups.values()]
    return copies, (*others, *(_in_part(unit, i, group) for i, group in enumerate(apart) for unit in own))


def _in_part(unit: OpenUnits, number: int, group: Tensor) -> OpenUnits:
    table = unit.table & (group[:, None] if unit.within else group)
    within = part_name(unit.within, number) if unit.within else ""
    return OpenUnits(part_name(unit.axis, number), within, table)


def select_open(analysis: Analysis, units: Sequence[OpenUnits]) -> Selection:
    """Return the Selection of open units: at least one of each axis, and equally many within each unit of an outer axis."""
    axes: dict[str, Sequence[int] | Sequence[Sequence[int]]] = {}
    within: dict[str, str] = {}
    alive = {unit.axis: unit.table for unit in units if not unit.within}
    for unit in units:
        axis = analysis.by_name.get(unit.axis)
        if axis is None:
            continue
        kept = _rows(unit, alive.get(unit.within)) if unit.within else _flat(unit.table)
        if len(kept) == axis.size and not unit.within:
            continue
        axes[unit.axis] = kept
        within |= {unit.axis: unit.within} if unit.within else {}
    return Selection(axes, within=within)


def _flat(table: Tensor) -> list[int]:
    found: list[int] = table.nonzero().flatten().tolist()
    return found or [0]


def _rows(unit: OpenUnits, alive: Tensor | None) -> list[list[int]]:
    """Return the units kept within each outer one: the open ones, padded with closed ones to the number in the largest."""
    rows = unit.table if alive is None or not bool(alive.any()) else unit.table[alive]
    width = max(1, int(rows.sum(1).max()))
    return [sorted(_filled(row, width)) for row in unit.table]


def _filled(row: Tensor, width: int) -> list[int]:
    found: list[int] = [*row.nonzero().flatten().tolist(), *(~row).nonzero().flatten().tolist()]
    return found[:width]
