"""Transfer: apply the decisions of one program to another that reads the same weights (prefill and decode, a model and its encoder).

Weights are recognised by their memory, not by their names: two captures of one model share it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fxprune.analysis import Analysis, Axis, Region, analyze
from fxprune.dims import coordinates
from fxprune.errors import SelectionError
from fxprune.ir import Program, Selection, copy_graph, like, rebuild, storage_key
from fxprune.rewrite.apply import apply


def same_weights(source: Program, target: Program) -> dict[str, str]:
    """Return the target's name of each parameter that both programs read, by the source's."""
    theirs = {storage_key(value): name for name, value in target.parameters().items()}
    mine = {name: storage_key(value) for name, value in source.parameters().items()}
    return {name: theirs[key] for name, key in mine.items() if key in theirs}


def transfer(source: Program, selection: Selection, target: Program) -> Selection:
    """Return the selection in the target's names: of axes and regions whose weights it reads.

    Axes are the same where they index the same weights alike, whatever stays whole beside them. SelectionError where what went from the
    source can't go from the target.
    """
    names, before, after = same_weights(source, target), analyze(source), analyze(target)
    removed = [before.region(name) for name in selection.removed]
    shared = [region for region in removed if names.keys() & set(region.parameters)]
    regions = tuple(_region(after, names, region) for region in shared)
    marks = {_marks(axis, {}): axis.name for axis in after.axes}
    read = [axis for axis in before.axes if _marks(axis, names)]
    wanted = {axis.name for axis in read} & (set(selection) | set(selection.within.values()))
    called = {axis.name: _target_name(axis, names, marks, after) for axis in read if axis.name in wanted}
    return Selection(
        {called[name]: kept for name, kept in selection.axes.items() if name in called},
        {called[name]: size for name, size in selection.sizes.items() if name in called},
        {called[name]: called[outer] for name, outer in selection.within.items() if name in called},
        removed=regions,
    )


@dataclass(frozen=True, eq=False)
class Replayed:
    """Program that was pruned like another: the selection that did it, and its names of weights that were re-fitted there."""

    program: Program
    selection: Selection
    refitted: tuple[str, ...] = ()


def replay_pruning(
    source: Program, slim: Program, selection: Selection, target: Program, refitted: Collection[str] = ()
) -> Replayed:
    """Prune the target as the source became `slim`; weights named in `refitted` are those of `slim`."""
    own, names = transfer(source, selection, target), same_weights(source, target)
    pruned, new = apply(target, own), slim.parameters()
    there = pruned.parameters()
    moved = {names[name]: name for name in refitted if names.get(name) in there}
    tensors = {mine: like(there[mine], new[name].detach()) for mine, name in moved.items()}
    return Replayed(rebuild(pruned, copy_graph(pruned), tensors), own, tuple(moved))


Marks: TypeAlias = frozenset[tuple[str, int, tuple[int, ...]]]


def _marks(axis: Axis, names: Mapping[str, str]) -> Marks:
    """Return the unit of each position of each parameter; with `names`, of what both programs read, in the target's names."""
    members = [member for member in axis.members if member.learned and (not names or member.name in names)]
    units = [(m.name, m.dim, tuple(coordinates(m.carrier, axis.leaf).tolist())) for m in members]
    return frozenset((names.get(name, name), dim, positions) for name, dim, positions in units)


def _target_name(axis: Axis, names: Mapping[str, str], marks: Mapping[Marks, str], after: Analysis) -> str:
    """Return the target's name of an axis; SelectionError where none is the same."""
    mine = _marks(axis, names)
    found = [name for theirs, name in marks.items() if mine & theirs]
    if len(found) == 1:
        return found[0]
    places = {(name, place) for name, place, _ in mine}
    why = next((each.why for each in after.refusals if places & each.places), "it is coupled otherwise")
    raise SelectionError(
        f"{axis.name} lost units in one part of the model, and must stay whole in another: {why}"
    )


def _region(after: Analysis, names: Mapping[str, str], region: Region) -> str:
    """Return the target's region of the same weights; SelectionError where there is none."""
    wanted = {names.get(name, name) for name in region.parameters}
    same = [each for each in after.regions if set(each.parameters) == wanted and each.unit == region.unit]
    if not same:
        raise SelectionError(
            f"{region.name} went from one part of the model, and can't go from another: it is no {region.unit} there"
        )
    return after.region(same[0].name).name
