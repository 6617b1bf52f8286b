"""Order of constraints: the axes of a program must be the same when its nodes are visited in another order."""

from __future__ import annotations

import random

from fxprune.analysis.dim_inference import replay, walk
from fxprune.dims import Dim, coordinates, is_pinned, leaves
from fxprune.ir import Program
from fxprune.rules import Flow

Places = list[tuple[str, int, tuple[int, ...]]]


def same_axes(program: Program, seed: int) -> bool:
    """Whether a replay in a random order of nodes finds the same axes as the walk does."""
    order = list(program.graph.nodes)
    random.Random(seed).shuffle(order)
    return axes(program, replay(program, order)) == axes(program, walk(program))


def axes(program: Program, flow: Flow) -> list[Places]:
    """Each free atom by its places: (tensor, dimension, the unit that each position belongs to).

    Units are numbered as they come, for which of two mirrored atoms is the reversed one depends on the order.
    """
    found: dict[Dim, Places] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        for place, dim in enumerate(flow.dims.get(node, ())):
            for leaf in dict.fromkeys(leaves(dim)):
                if leaf.size > 1 and not is_pinned(leaf):
                    units = tuple(coordinates(dim, leaf).tolist())
                    found.setdefault(leaf, []).append((str(node.target), place, units))
    return sorted(_numbered(places) for places in found.values())


def _numbered(places: Places) -> Places:
    """The places in order, with the units numbered from their first one on; −1 stays."""
    numbers = {-1: -1}
    return [
        (name, dim, tuple(numbers.setdefault(unit, len(numbers) - 1) for unit in units))
        for name, dim, units in sorted(places, key=lambda place: place[:2])
    ]
