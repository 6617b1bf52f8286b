"""From a Selection to masks by atom: where a selection meets a program, and is refused if it does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxprune.analysis.axes import Analysis, Axis
from fxprune.analysis.nested_axes import outer_atoms
from fxprune.dims.dim import Dim
from fxprune.dims.masks import KeptRows, changes, new_size
from fxprune.errors import SelectionError
from fxprune.ir.program import source_line
from fxprune.ir.selection import Selection, is_dependent


def kept_masks(analysis: Analysis, selection: Selection) -> dict[Dim, torch.Tensor | KeptRows]:
    """The selection as booleans by atom; SelectionError where it names no axis of the program or indices out of range."""
    if selection.removed:
        raise SelectionError(
            f"the selection removes {selection.removed[0]}, which is no axis: use fxprune.apply, which bypasses regions first"
        )
    for name in selection:
        analysis.axis(name)
    if selection.model not in ("", analysis.digest):
        raise SelectionError(
            f"the selection is for another model: it was made for axes {selection.model}, this one's are {analysis.digest}"
        )
    masks: dict[Dim, torch.Tensor | KeptRows] = {}
    for name in selection:
        axis = analysis.axis(name)
        _check_size(axis, selection)
        if is_dependent(selection.axes[name]):
            masks[axis.leaf] = _rows(analysis, axis, selection)
        else:
            masks[axis.leaf] = _mask(axis, selection[name])
    _check_choices(analysis, masks)
    return masks


def _check_choices(analysis: Analysis, masks: dict[Dim, torch.Tensor | KeptRows]) -> None:
    """As many candidates must stay as a choice takes."""
    for dim, least, node in analysis.flow.least:
        if changes(dim, masks) and new_size(dim, masks) < least:
            raise SelectionError(
                f"{node.name} = {node.target} chooses {least}, and {new_size(dim, masks)} would be left [{source_line(node)}]"
            )


def _check_size(axis: Axis, selection: Selection) -> None:
    said = selection.sizes.get(axis.name, axis.size)
    last = max(selection.flat(axis.name))
    if last >= axis.size or said != axis.size:
        asked = f"a size of {said}" if said != axis.size else f"index {last}"
        raise SelectionError(
            f"axis {axis.name} has {axis.size} indices, the selection speaks of {asked}: it is for another model"
        )


def _mask(axis: Axis, indices: Sequence[int]) -> torch.Tensor:
    mask = torch.zeros(axis.size, dtype=torch.bool)
    mask[list(indices)] = True
    return mask


def _rows(analysis: Analysis, axis: Axis, selection: Selection) -> KeptRows:
    """The table of an axis that keeps other indices for each unit of an outer one."""
    rows = selection.rows(axis.name)
    outer = _outer(analysis, axis, selection, len(rows))
    if len(rows) != outer.size:
        raise SelectionError(
            f"axis {axis.name}: {len(rows)} rows of indices, but {outer.name} has {outer.size} units"
        )
    return KeptRows(outer.leaf, torch.stack([_mask(axis, row) for row in rows]))


def _outer(analysis: Analysis, axis: Axis, selection: Selection, count: int) -> Axis:
    possible = analysis.within(axis.name)
    if not possible:
        _, node = outer_atoms(analysis.flow, axis.leaf)
        place = f" ({node} has it alone)" if node else ""
        raise SelectionError(
            f"axis {axis.name} keeps the same indices everywhere{place}: give one list, not one for each unit"
        )
    wanted = selection.within.get(axis.name)
    if wanted is None:
        fitting = [name for name in possible if analysis.axis(name).size == count]
        wanted = fitting[0] if len(fitting) == 1 else None
    if wanted not in possible:
        raise SelectionError(
            f"axis {axis.name}: say within which axis the rows run: one of {', '.join(possible)}"
        )
    return analysis.axis(wanted)
