"""Dead-unit elimination: find units that zeros in the weights leave without effect, over the whole graph, to a fixed point.

A unit is dead where every sum over it adds zero for it: its columns are zero, or its rows are, and the constant that its bias leaves has
moved into the biases of its readers (`fxprune.gates.absorb_constants`). A query/key dim is dead where its rows of the queries or of the
keys are zero; a head only where its rows of the values or its columns of the output are: without queries or keys it attends evenly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Analysis, Axis, Units, analyze
from fxprune.analysis.constant_propagation import ConstantMasks, propagate_constants
from fxprune.dims import Dim, Kept, find, leaves, zero
from fxprune.dims.masks import KeptRows
from fxprune.gates.absorb_constants import absorb_constants
from fxprune.gates.gate import gate_target
from fxprune.gates.implied import OpenUnits, close_implied
from fxprune.ir import Program, copy_graph, rebuild
from fxprune.rewrite.shrink import labels
from fxprune.rules import Contraction


def zero_dead_units(
    program: Program, takes: Callable[[Axis | str], bool] = lambda part: True
) -> tuple[Program, list[OpenUnits]]:
    """Return (the program with zeros in all weights of dead units, the units that are not dead); equal to the given one but for rounding.

    A dead unit may make others dead that only it read, or that read only it: the search is repeated until no more are found.
    `takes` says which axes may lose units, and which weights constants may move from.
    """
    closed = -1
    while True:
        program = absorb_constants(program, takes)
        analysis = analyze(program)
        units = _units(analysis, takes)
        count = sum(int((~unit.table).sum()) for unit in units)
        if count == closed:
            return program, units
        closed, program = count, _without(analysis, units)


def _units(analysis: Analysis, takes: Callable[[Axis | str], bool]) -> list[OpenUnits]:
    """Return which units are not dead, for each exact axis that has dead ones; per head where each may keep dims of its own."""
    facts, flow = propagate_constants(analysis.program), analysis.flow
    found = []
    for axis in analysis.axes:
        if not axis.exact or axis.choices or not takes(axis):
            continue
        outer = _outer(analysis, axis)
        units = Units(axis, outer)
        sums = [one for one in flow.contractions if axis.leaf in leaves(one.dim)]
        silent = [_silent(analysis, facts, one, units) for one in sums]
        table = ~torch.stack(silent).all(0) if silent else torch.ones(units.count, dtype=torch.bool)
        if not bool(table.all()):
            shape = (outer.size, axis.size) if outer else (axis.size,)
            found.append(OpenUnits(axis.name, outer.name if outer else "", table.reshape(shape)))
    return close_implied(analysis, found)


def _outer(analysis: Analysis, axis: Axis) -> Axis | None:
    asked = gate_target(analysis, axis)
    return None if isinstance(asked, str) else analysis.axis(asked[1])


def _silent(analysis: Analysis, facts: ConstantMasks, found: Contraction, units: Units) -> Tensor:
    """Return the units for which a sum adds zero, whatever the inputs are: one of its factors is zero at all their positions."""
    result = torch.zeros(units.count, dtype=torch.bool)
    for node in found.operands:
        dims = analysis.flow.dims[node]
        if _lies_once(units.axis.leaf, dims, found.dim):
            result |= _zeros(facts, node, dims, units)
    return result


def _lies_once(leaf: Dim, dims: tuple[Dim, ...], summed: Dim) -> bool:
    """Return whether an operand carries an axis along the summed dimension, and along no other."""
    places = [dim for dim in dims if leaf in leaves(dim)]
    return len(places) == 1 and find(places[0]) is find(summed)


def _zeros(facts: ConstantMasks, node: fx.Node, dims: tuple[Dim, ...], units: Units) -> Tensor:
    """Return the units at whose positions a value is zero, whatever the inputs are."""
    other = (~facts.zero(node)).to(torch.float64)
    left = units.total(other, dims)
    if left is None:
        left = Units(units.axis).total(other, dims)
        assert left is not None
        left = left.repeat(units.groups)
    return left == 0


def _without(analysis: Analysis, units: list[OpenUnits]) -> Program:
    """Zero every weight of closed units: those that read them and those that produce them."""
    nodes = analysis.program.reads()
    tensors = analysis.program.tensors()
    for unit in units:
        axis = analysis.axis(unit.axis)
        outer = analysis.axis(unit.within).leaf if unit.within else None
        kept: Kept = {axis.leaf: KeptRows(outer, unit.table) if outer else unit.table}
        for name in dict.fromkeys(member.name for member in axis.members if member.learned):
            tensors[name] = zero(tensors[name], analysis.flow.dims[nodes[name]], kept)
    left = {n: v for n, v in tensors.items() if isinstance(v, nn.Parameter)}
    return rebuild(analysis.program, copy_graph(analysis.program), left).replace(labels=labels(analysis, {}))
