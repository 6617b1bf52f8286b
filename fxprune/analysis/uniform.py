"""Uniform plans: which axes keep equally many units, so that one number holds for all layers (as in the configurations of models)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import fx, nn

from fxprune.analysis.axes import Analysis, Axis
from fxprune.analysis.dim_inference import flat_dims
from fxprune.dims import Dim, leaves
from fxprune.ir import attribute

SELECT = torch.ops.aten.index_select.default


def group_uniform(analysis: Analysis, axes: Sequence[Axis]) -> list[list[Axis]]:
    """Group the axes that a uniform plan ties: of one role and one size, or in the same place of layers that repeat.

    Layers count as repeats where they stand in one list and their axes have the same roles in the same order; sizes may differ, for
    layers may have been pruned differently before.
    """
    places = _places(analysis)
    sets: dict[tuple[Hashable, ...], list[Axis]] = {}
    for axis in axes:
        sets.setdefault((axis.role, places.get(axis.name, axis.name)), []).append(axis)
    joined: dict[tuple[Hashable, ...], list[Axis]] = {}
    for key, found in sets.items():
        sizes = {axis.size for axis in found}
        joined.setdefault((key[0], *sizes) if len(sizes) == 1 else key, []).extend(found)
    return list(joined.values())


def _places(analysis: Analysis) -> dict[str, Hashable]:
    """Return for each axis of one layer the list that contains the layer, the roles of its axes, and the axis's place among them."""
    layers = [region for region in analysis.regions if region.unit == "layer" and not region.why]
    home = {name: layer.name for layer in layers for name in layer.parameters}
    own: dict[str, list[Axis]] = {}
    for axis in analysis.axes:
        homes = {home.get(member.name, "") for member in axis.members if member.learned}
        if len(homes) == 1:
            own.setdefault(homes.pop(), []).append(axis)
    own.pop("", None)
    return {
        axis.name: (layer.rpartition(".")[0], tuple(each.role for each in inside), place)
        for layer, inside in own.items()
        for place, axis in enumerate(inside)
    }


def tied_by_table(analysis: Analysis, axes: Sequence[Axis]) -> list[list[Axis]]:
    """Group the axes that choose units of one table which layers share (heads of a position bias): one table can be cut only once."""
    sets: list[list[Axis]] = []
    for nodes in choices(analysis).values():
        names = {str(index.target) for index in nodes.values()}
        sets.append([axis for axis in axes if any(member.name in names for member in axis.members)])
    return [found for found in sets if len(found) > 1 and len({axis.size for axis in found}) == 1]


def choices(analysis: Analysis) -> dict[Dim, dict[fx.Node, fx.Node]]:
    """Return the nodes that choose from each atom of a learned table that layers share (see `shared_tables`), with their indices."""
    program, dims = analysis.program, analysis.flow.dims
    nodes = program.graph.find_nodes(op="get_attr")
    weights = [n for n in nodes if isinstance(attribute(program.graph_module, str(n.target)), nn.Parameter)]
    learned = {leaf for node in weights for dim in dims.get(node, ()) for leaf in leaves(dim)}
    found: dict[Dim, dict[fx.Node, fx.Node]] = {}
    for node in program.graph.find_nodes(op="call_function", target=SELECT):
        source, place, index = node.args
        atoms = list(leaves(flat_dims(dims.get(source, ()))[place]))
        if len(atoms) == 1 and atoms[0] in learned and isinstance(index, fx.Node) and index.op == "get_attr":
            found.setdefault(atoms[0], {})[node] = index
    return found
