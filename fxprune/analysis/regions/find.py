"""The regions of a program: its layers and residual branches, and the reasons why other repeated modules can't go.

A layer is a call of a repeated module that hands its inputs on with something added, or, where modules give no evidence (a list in a
Python loop, a graph without them), a unit of the shortest period with which a row of atoms repeats, with a residual in it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from torch import fx

from fxprune.analysis.axis_names import shared_path
from fxprune.analysis.regions.atoms import Atom, find_atoms, find_rows
from fxprune.analysis.regions.branches import find_branches
from fxprune.analysis.regions.calls import ModuleCall, ModuleCalls, Ways, above
from fxprune.analysis.regions.names import Roles, with_names
from fxprune.analysis.regions.region import UNITS, Region
from fxprune.analysis.regions.streams import Streams
from fxprune.ir import Program
from fxprune.rules import Flow


def find_regions(program: Program, flow: Flow, roles: Roles) -> tuple[Region, ...]:
    """Return the layers, then the residual branches, each in graph order, then the modules that can't go, with the reason."""
    streams = Streams(program, flow)
    calls, atoms = ModuleCalls(streams), find_atoms(streams)
    ways = {call: calls.ways(call) for call in calls.all if call.repeated}
    whole = _outermost_complete(ways)
    found = [_region(streams, "layer", ways[call], call.path) for call in whole]
    taken = {name for region in found for name in region.nodes}
    free = [[atom for atom in row if atom.exit.name not in taken] for row in find_rows(atoms)]
    units = [unit for row in free for run in _adjacent(row) for unit in _repeating(run)]
    found += [_region(streams, "layer", _through(streams, unit)) for unit in units]
    for branch in find_branches(streams, atoms):
        way = Ways((branch.entry,), (branch.exit,), branch.nodes)
        found.append(_region(streams, "branch", way, calls.innermost(way), branch.addend))
    place = {node.name: i for node, i in streams.order.items()}
    found.sort(key=lambda region: (UNITS.index(region.unit), max(place[name] for name in region.exits)))
    known = with_names(roles, found, calls.own(found), calls.paths())
    return (*known, *_refused(streams, ways, known))


def _region(streams: Streams, unit: str, ways: Ways, path: str = "", addend: fx.Node | None = None) -> Region:
    parameters = streams.weights(ways.nodes)
    entries, exits = (tuple(node.name for node in nodes) for nodes in (ways.entries, ways.exits))
    signature = streams.signature(ways.nodes, ways.entries)
    nodes = frozenset(node.name for node in ways.nodes)
    name = path or shared_path(list(parameters))
    return Region(name, unit, entries, exits, parameters, signature, "", nodes, addend.name if addend else "")


def _through(streams: Streams, unit: Sequence[Atom]) -> Ways:
    """Return the way through a unit of a row."""
    entry, way_out = unit[0].entry, unit[-1].end
    return Ways((entry,), (way_out,), tuple(streams.dead([way_out], [entry])))


def _outermost_complete(ways: Mapping[ModuleCall, Ways]) -> list[ModuleCall]:
    """Choose, of nested calls, the outermost whose siblings of the same class can all go, else the innermost."""
    stuck = {call.beside for call, way in ways.items() if way.why}
    whole = [call for call, way in ways.items() if not way.why]
    around = {outer for call in whole for outer in call.outer}
    chosen: list[ModuleCall] = []
    for call in whole:
        chain = (one for one in (*call.outer, call) if one in ways and not ways[one].why)
        best = next((one for one in chain if one.beside not in stuck), None)
        if best is call or (best is None and call not in around):
            chosen.append(call)
    return chosen


def _adjacent(atoms: Sequence[Atom]) -> list[list[Atom]]:
    """Split atoms where one does not begin at the end of the one before: what lies between belongs to neither."""
    runs: list[list[Atom]] = []
    for atom in atoms:
        if runs and runs[-1][-1].end is atom.entry:
            runs[-1].append(atom)
        else:
            runs.append([atom])
    return runs


def _repeating(row: Sequence[Atom]) -> Iterator[tuple[Atom, ...]]:
    """Yield the units of every stretch that repeats and contains a residual."""
    signs = [atom.signature for atom in row]
    places: dict[str, list[int]] = {}
    for place, sign in enumerate(signs):
        places.setdefault(sign, []).append(place)
    at = 0
    while at < len(row):
        later = places[signs[at]]
        period, end = _stretch(signs, at, later[bisect_right(later, at) :])
        if period and any(atom.residual for atom in row[at : at + period]):
            yield from _units(row[at:end], period)
        at = end if period else at + 1


def _stretch(signs: Sequence[str], at: int, later: Iterable[int]) -> tuple[int, int]:
    """Return (the shortest period with which a stretch begins here and repeats at least once, its end), or (0, at).

    `later` are the places of the same signature behind this one.
    """
    for period in (place - at for place in later):
        end = at + period
        while end < len(signs) and signs[end] == signs[end - period]:
            end += 1
        if end - at >= 2 * period:
            return period, end
    return 0, at


def _units(stretch: Sequence[Atom], period: int) -> list[tuple[Atom, ...]]:
    """Split a stretch into units of one length, with as much of their tails as all of them share."""
    units = [stretch[i : i + period] for i in range(0, len(stretch) - period + 1, period)]
    tails = [[piece.signature for piece in unit[-1].tail] for unit in units]
    shared = sum(1 for _ in takewhile(lambda pieces: len(set(pieces)) == 1, zip(*tails, strict=False)))
    return [(*unit[:-1], replace(unit[-1], tail=unit[-1].tail[:shared])) for unit in units]


def _refused(streams: Streams, ways: Mapping[ModuleCall, Ways], found: Sequence[Region]) -> list[Region]:
    """Return repeated modules that contain modules and are no layers, with the reason why they can't go; of nested ones the outermost."""
    covered = frozenset[str]().union(*(region.nodes for region in found if region.unit == "layer"))
    names = {region.name for region in found}
    holding = {path for name in names for path in above(name)}
    why: dict[str, str] = {}
    for call, way in ways.items():
        open_ = way.why and call.composite and not (way.vague and call.path in holding)
        if open_ and call.path not in names and names.isdisjoint(above(call.path)):
            readers = [node.name for node in call.nodes if streams.reads_weights(node)]
            if not covered.issuperset(readers):
                why.setdefault(call.path, way.why)
    return [
        Region(path, "layer", why=text) for path, text in why.items() if why.keys().isdisjoint(above(path))
    ]
