"""Which lowering is cheapest for units of unequal sizes: each is cut out as a small program, and metered."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fxprune.analysis.axes import analyze
from fxprune.analysis.sites import Part, carriers, part, values_at
from fxprune.cost.budgets import Meter
from fxprune.errors import RefusedError
from fxprune.gates.gate import Gated
from fxprune.gates.lower import LOWERINGS, Silenced, copy_uneven, ragged, select_open, silenced
from fxprune.ir.example_inputs import Point
from fxprune.rewrite.shrink import shrink


def cheapest(
    gated: Gated, trained: nn.Module | Mapping[str, Tensor] | None, meter: Meter, point: Point | None = None
) -> dict[str, str]:
    """For each outer axis that is ragged, the row of LOWERINGS that costs least by a meter (a `Clock` measures the runtime) at a point.

    `lower(gated, trained, cheapest(gated, trained, clock))` uses them. Where an axis can't be computed in parts, padding is what is left.
    """
    ready = silenced(gated, trained)
    found = {}
    for outer in ragged(ready):
        parts = _parts(ready, outer, point)
        costs = meter({how: (piece.signature, piece.program) for how, piece in parts.items()})
        found[outer] = min(costs, key=costs.__getitem__)
    return found


def _parts(ready: Silenced, outer: str, point: Point | None) -> dict[str, Part]:
    """What the axis runs through, in each lowering that is possible."""
    found = {}
    for how in LOWERINGS:
        try:
            found[how] = _part(ready, outer, how, point)
        except RefusedError:
            continue
    return found


def _part(ready: Silenced, outer: str, how: str, point: Point | None) -> Part:
    program, units = copy_uneven(ready.program, ready.units, outer, how)
    before = {node.name for node in ready.program.graph.graph.nodes}
    made = frozenset(n.name for n in program.graph.graph.nodes if n.op == "call_function") - before
    analysis = analyze(program)
    own = made or frozenset(carriers(analysis).get(analysis.axis(outer).leaf, ()))
    touched = [unit for unit in units if outer in (unit.axis, unit.within) or unit not in ready.units]
    slim = shrink(program, select_open(analysis, touched))
    return part(slim, own, values_at(slim, point))
