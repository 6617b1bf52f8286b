"""Drop addends: what belongs to removed positions of a dim leaves its sums and joins, with all that only it needed.

a0 = mul(slice 0, expert 0), a2 = mul(slice 2, expert 2)      position 0 removed: add(a0, a2) is a2, and slice 2 is slice 1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxprune.dims import Kept, changes
from fxprune.dims.masks import keep_mask
from fxprune.ir import bind
from fxprune.ir.arguments import unbind
from fxprune.rewrite.dead_code import erase_dead
from fxprune.rules import Flow
from fxprune.rules.addends import OnePosition

aten = torch.ops.aten


def drop_addends(flow: Flow, nodes: Mapping[fx.Node, fx.Node], kept: Kept) -> None:
    """Drop the addends and the joined operands of removed positions, renumber the others, and erase what nothing reads any more."""
    found = flow.addends
    removed: set[fx.Node] = set()
    stacks = [node for node in found.stacks if node in flow.dims and _shrinks(flow, node, kept)]
    for node, slot in found.slots.items():
        dim = flow.dims[slot.of.value][slot.of.place]
        if not changes(dim, kept):
            continue
        mask = keep_mask(dim, kept)
        if mask[slot.position]:
            _renumber(nodes[node], slot, int(mask[: slot.position].sum()))
        else:
            removed.add(node)
    for node in stacks:
        _thin(nodes[node], keep_mask(flow.dims[node][_place(node)], kept).tolist())
    if removed:
        _pass_zeros(flow, nodes, removed)
    if removed or stacks:
        erase_dead(next(iter(nodes.values())).graph)


def _place(node: fx.Node) -> int:
    """Return the dimension of a join's result along which its operands lie."""
    return int(bind(node)["dim"].value % node.meta["val"].dim())


def _shrinks(flow: Flow, node: fx.Node, kept: Kept) -> bool:
    return changes(flow.dims[node][_place(node)], kept)


def _thin(node: fx.Node, mask: list[bool]) -> None:
    """Let a join read the operands that stay."""
    items: Any = node.args[0]
    node.args = ([item for item, stays in zip(items, mask, strict=True) if stays], *node.args[1:])


def _renumber(node: fx.Node, slot: OnePosition, position: int) -> None:
    """Let a node take another position; one of several results becomes a node that takes it alone."""
    given = {name: found.value for name, found in bind(node).items()}
    if node.target is aten.select.int:
        node.args, node.kwargs = unbind(node, {**given, "index": position})
    elif node.target is aten.slice.Tensor:
        node.args, node.kwargs = unbind(node, {**given, "start": position, "end": position + 1, "step": 1})
    else:
        _taken_alone(node, slot, position)


def _taken_alone(node: fx.Node, slot: OnePosition, position: int) -> None:
    taker: Any = node.args[0]
    alone = taker.target is aten.unbind.int
    target, ends = (aten.select.int, (position,)) if alone else (aten.slice.Tensor, (position, position + 1))
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, (taker.args[0], slot.of.place, *ends))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)


def _pass_zeros(flow: Flow, nodes: Mapping[fx.Node, fx.Node], zero: set[fx.Node]) -> None:
    """Let each sum be its other operand where one has become zero; in graph order, so that sums of zeros alone are zero, too."""
    for node in nodes:
        values = node.all_input_nodes
        gone = [value for value in values if value in zero]
        if node in flow.addends.sums and gone and len(gone) < len(values):
            sides = bind(node)
            left = next(name for name in ("self", "other") if sides[name].value not in zero)
            nodes[node].replace_all_uses_with(bind(nodes[node])[left].value)
        elif gone and node in flow.addends.silent:
            zero.add(node)
