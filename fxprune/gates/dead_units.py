"""Empty: units that zeros in the weights have left without effect, found over the whole graph, to a fixed point.

A unit is empty where every sum over it adds zero for it: its columns are gone, or its rows are, and what is left of its bias has moved into
the biases of its readers (`fxprune.gates.absorb_constants`). A query/key dim is empty where the queries' or the keys' rows are; a head,
where its values' rows or its output's columns are, and only then: without queries or keys it attends evenly.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Analysis, Axis, Units, analyze
from fxprune.analysis.constant_propagation import Known, known
from fxprune.dims import Dim, Kept, find, leaves, zero
from fxprune.dims.masks import KeptRows
from fxprune.gates.absorb_constants import absorbed
from fxprune.gates.gate import gate_target
from fxprune.gates.implied import Open, close_implied
from fxprune.ir import Program, copy_graph, rebuild
from fxprune.rewrite.shrink import labels
from fxprune.rules import Contraction


def emptied(program: Program) -> tuple[Program, list[Open]]:
    """(the program with zeros in all weights of empty units, which units are not); equal to the given one but for rounding.

    Emptying a unit may empty others that only it read, or that only read it: it is done until nothing more follows.
    """
    closed = -1
    while True:
        program = absorbed(program)
        analysis = analyze(program)
        units = _units(analysis)
        count = sum(int((~unit.table).sum()) for unit in units)
        if count == closed:
            return program, units
        closed, program = count, _without(analysis, units)


def _units(analysis: Analysis) -> list[Open]:
    """What is not empty of each exact axis; of each head apart where its dims may differ."""
    facts, flow = known(analysis.program), analysis.flow
    found = []
    for axis in analysis.axes:
        if not axis.exact or axis.choices:
            continue
        outer = _outer(analysis, axis)
        units = Units(axis, outer)
        sums = [one for one in flow.contractions if axis.leaf in leaves(one.dim)]
        silent = [_silent(analysis, facts, one, units) for one in sums]
        table = ~torch.stack(silent).all(0) if silent else torch.ones(units.count, dtype=torch.bool)
        if not bool(table.all()):
            shape = (outer.size, axis.size) if outer else (axis.size,)
            found.append(Open(axis.name, outer.name if outer else "", table.reshape(shape)))
    return close_implied(analysis, found)


def _outer(analysis: Analysis, axis: Axis) -> Axis | None:
    asked = gate_target(analysis, axis)
    return None if isinstance(asked, str) else analysis.axis(asked[1])


def _silent(analysis: Analysis, facts: Known, found: Contraction, units: Units) -> Tensor:
    """The units for which a sum adds zero, whatever the inputs are: one of its factors is zero in all their places."""
    result = torch.zeros(units.count, dtype=torch.bool)
    for node in found.operands:
        dims = analysis.flow.dims[node]
        if _lies_once(units.axis.leaf, dims, found.dim):
            result |= _zeros(facts, node, dims, units)
    return result


def _lies_once(leaf: Dim, dims: tuple[Dim, ...], summed: Dim) -> bool:
    """Whether an operand carries an axis along the summed dimension, and along no other."""
    places = [dim for dim in dims if leaf in leaves(dim)]
    return len(places) == 1 and find(places[0]) is find(summed)


def _zeros(facts: Known, node: fx.Node, dims: tuple[Dim, ...], units: Units) -> Tensor:
    """The units in whose places a value is zero."""
    other = (~facts.zero(node)).to(torch.float64)
    left = units.total(other, dims)
    if left is None:
        left = Units(units.axis).total(other, dims)
        assert left is not None
        left = left.repeat(units.groups)
    return left == 0


def _without(analysis: Analysis, units: list[Open]) -> Program:
    """Zeros in every weight of closed units: in those that read them, and in those that they are made by."""
    nodes = analysis.program.reads()
    tensors = analysis.program.tensors()
    for unit in units:
        axis = analysis.axis(unit.axis)
        kept: Kept = {
            axis.leaf: KeptRows(analysis.axis(unit.within).leaf, unit.table) if unit.within else unit.table
        }
        for name in dict.fromkeys(member.name for member in axis.members if member.learned):
            tensors[name] = zero(tensors[name], analysis.flow.dims[nodes[name]], kept)
    left = {n: v for n, v in tensors.items() if isinstance(v, nn.Parameter)}
    return rebuild(analysis.program, copy_graph(analysis.program), left).replace(labels=labels(analysis, {}))
