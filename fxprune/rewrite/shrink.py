"""Shrink: cut a selection's members to the kept indices, rewrite size arguments, and check every value's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis import Analysis, Axis, analyze
from fxprune.analysis.axis_names import Label, free_atoms
from fxprune.analysis.nested_axes import outer_atoms
from fxprune.dims import Dim, Kept, changes, cut, zero
from fxprune.dims.masks import KeptRows, keep_mask, kept_size, new_size
from fxprune.errors import SelectionError
from fxprune.ir import Program, Selection, attribute, copy_graph, rebuild, source_line, storage_key
from fxprune.ir.selection import is_dependent
from fxprune.ir.signature import with_inputs
from fxprune.rewrite.drop_addends import drop_addends
from fxprune.rewrite.shape_propagation import propagate
from fxprune.rewrite.size_arguments import freeze_sizes, loosen_views, resize
from fxprune.rules.facts import Choice


def shrink(program: Program, selection: Selection) -> Program:
    """Return a smaller program that keeps only what the selection keeps; the given one and its tensors stay as they are.

    Untouched tensors are shared, cut ones are new. SelectionError if the selection does not fit; VerifyError if a value's size
    is not the one that its dims promise (which would be a bug of a rule: report it).
    """
    analysis = analyze(program)
    kept = kept_masks(analysis, selection)
    if all(kept_size(part) == leaf.size for leaf, part in kept.items()):
        return program
    return shrink_atoms(analysis, kept)


def shrink_atoms(analysis: Analysis, kept: Kept) -> Program:
    """Shrink by atoms: for rewrites that have a reason why an atom outside of the axes may go; all others use `shrink`."""
    program = analysis.program
    graph, nodes = _copy(program)
    tensors = _cut_tensors(program, analysis, kept)
    freeze_sizes(analysis.flow, nodes, kept)
    resize(analysis.flow, nodes, kept)
    loosen_views(analysis.flow, nodes, kept)
    drop_addends(analysis.flow, nodes, kept)
    slim = rebuild(program, graph, tensors).replace(labels=labels(analysis, kept))
    slim = with_inputs(slim, _cut_inputs(analysis, kept)) if program.free_inputs else slim
    flow_dims = analysis.flow.dims
    left = {*slim.graph.nodes}
    sized = {old: new for old, new in nodes.items() if new in left and old in flow_dims}
    propagate(slim, {new: _promised(flow_dims[old], kept) for old, new in sized.items()}, program)
    return slim


def zero_readers(program: Program, selection: Selection) -> Program:
    """Return the oracle of `shrink`: the same graph with the readers of removed units zeroed, and removed candidates never chosen.

    For exact axes the result equals that of `shrink`. SelectionError names inexact axes: for them no zeros of weights equal removal.
    """
    analysis = analyze(program)
    kept = kept_masks(analysis, selection)
    inexact = [name for name in selection if not analysis.axis(name).exact]
    if inexact:
        why = analysis.axis(inexact[0]).why_inexact
        raise SelectionError(
            f"no zeros equal removal on {', '.join(inexact)} ({why}); leave inexact axes out of the claim"
        )
    graph, nodes = _copy(program)
    zeros: dict[str, list[str]] = {}
    for name in selection:
        for reader in analysis.axis(name).readers:
            zeros.setdefault(reader, []).append(name)
    tensors = {reader: _zeroed(program, analysis, reader, names, kept) for reader, names in zeros.items()}
    return rebuild(program, graph, _with_ties(program, tensors) | _masked(analysis, nodes, kept))


def _masked(analysis: Analysis, nodes: dict[fx.Node, fx.Node], kept: Kept) -> dict[str, Tensor]:
    """Mask removed candidates at every choice with a value that never wins; return the masks by the names that they got."""
    masks: dict[str, Tensor] = {}
    for choice in analysis.flow.choices:
        if changes(choice.dim, kept):
            name = f"_never_{choice.node.name}"
            behind = choice.value.meta["val"].dim() - 1 - choice.place
            masks[name] = ~keep_mask(choice.dim, kept).reshape(-1, *(1,) * behind)
            _fill(choice, nodes, name)
    return masks


def _fill(choice: Choice, nodes: dict[fx.Node, fx.Node], mask: str) -> None:
    """Let the choosing node read its operand with the loser's value where the mask is; after a join, let all its readers."""
    node, value = nodes[choice.node], nodes[choice.value]
    with node.graph.inserting_before(node.next if choice.joins else node):
        operands = (value, node.graph.get_attr(mask), choice.loser)
        filled = node.graph.call_function(torch.ops.aten.masked_fill.Scalar, operands)
    if choice.joins:
        value.replace_all_uses_with(filled, delete_user_cb=lambda user: user is not filled)
    else:
        node.args = (filled, *node.args[1:])


def _copy(program: Program) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    graph = copy_graph(program)
    return graph, dict(zip(program.graph.nodes, graph.nodes, strict=True))


def _cut_tensors(program: Program, analysis: Analysis, kept: Kept) -> dict[str, Tensor]:
    """Return new tensors for the members that lose indices; what was one tensor stays one."""
    cuts: dict[str, Tensor] = {}
    made: dict[Any, Tensor] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        dims = analysis.flow.dims.get(node, ())
        if any(changes(dim, kept) for dim in dims):
            value = attribute(program.graph_module, str(node.target))
            key = storage_key(value)
            made[key] = (
                made[key] if key in made else _renumbered(node, cut(value, dims, kept), analysis, kept)
            )
            cuts[str(node.target)] = made[key]
    return cuts


def _renumbered(node: fx.Node, value: Tensor, analysis: Analysis, kept: Kept) -> Tensor:
    """Return a constant with the new numbers of the positions that it contains; any other tensor as it is."""
    numbered = analysis.flow.positions.get(node)
    if numbered is None:
        return value
    return (keep_mask(numbered, kept).cumsum(0) - 1).to(value)[value]


def _cut_inputs(analysis: Analysis, kept: Kept) -> dict[str, Tensor]:
    """Return the examples of inputs that shrink, cut along their dims."""
    program, dims = analysis.program, analysis.flow.dims
    nodes = [node for node in program.placeholders() if node.name in program.free_inputs]
    values = dict(zip([node.name for node in program.placeholders()], program.flat_inputs(), strict=True))
    moved = [node for node in nodes if any(changes(dim, kept) for dim in dims[node])]
    return {node.name: cut(values[node.name], dims[node], kept) for node in moved}


def _zeroed(program: Program, analysis: Analysis, name: str, axes: list[str], kept: Kept) -> Tensor:
    node = next(n for n in program.graph.find_nodes(op="get_attr") if n.target == name)
    own = {analysis.axis(axis).leaf: kept[analysis.axis(axis).leaf] for axis in axes}
    return zero(attribute(program.graph_module, name), analysis.flow.dims[node], own)


def _with_ties(program: Program, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return replaced tensors under all names that share their memory."""
    names = [str(node.target) for node in program.graph.find_nodes(op="get_attr")]
    values = {name: attribute(program.graph_module, name) for name in names}
    keyed = {name: storage_key(value) for name, value in values.items() if isinstance(value, Tensor)}
    by_identity = {keyed[name]: value for name, value in tensors.items()}
    return {name: by_identity[key] for name, key in keyed.items() if key in by_identity}


def _promised(dims: Any, kept: Kept) -> Any:
    return tuple(new_size(d, kept) if isinstance(d, Dim) else _promised(d, kept) for d in dims or ())


def labels(analysis: Analysis, kept: Kept) -> dict[Label, str]:
    """Return the names of axes by where they stand in the shrunk program's tensors, so that a later analysis finds them again."""
    names = {axis.leaf: axis.name for axis in analysis.axes}
    sizes = {leaf: kept_size(part) for leaf, part in kept.items()}
    found: dict[Label, str] = {}
    for axis in analysis.axes:
        for member in axis.members:
            for ordinal, leaf in enumerate(free_atoms(member.carrier, sizes)):
                if leaf in names:
                    found[(member.name, member.dim, ordinal)] = names[leaf]
    return found


def kept_masks(analysis: Analysis, selection: Selection) -> dict[Dim, torch.Tensor | KeptRows]:
    """Return the selection as booleans by atom; SelectionError where it names no axis of the program or indices out of range."""
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
        dependent = is_dependent(selection.axes[name])
        masks[axis.leaf] = _rows(analysis, axis, selection) if dependent else _mask(axis, selection[name])
    _check_choices(analysis, masks)
    return masks


def _check_choices(analysis: Analysis, masks: dict[Dim, torch.Tensor | KeptRows]) -> None:
    """Raise SelectionError where fewer candidates would stay than a choice takes, or an LSTM would be no wider than its projection."""
    choosing = {choice.node for choice in analysis.flow.choices}
    for dim, least, node in analysis.flow.least:
        if changes(dim, masks) and new_size(dim, masks) < least:
            verb = "chooses" if node in choosing else "needs at least"
            raise SelectionError(
                f"{node.name} = {node.target} {verb} {least}, and {new_size(dim, masks)} would be left [{source_line(node)}]"
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
    """Return the table of an axis that keeps other indices for each unit of an outer one."""
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
