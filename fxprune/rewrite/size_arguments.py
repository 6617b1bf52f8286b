"""Size arguments: rewrite the integer arguments that are sizes of dims when the dims shrink."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxprune.analysis import flat_dims
from fxprune.dims import Kept, changes
from fxprune.dims.masks import new_size
from fxprune.errors import VerifyError
from fxprune.ir.arguments import Path
from fxprune.rules import Flow, is_written
from fxprune.rules.facts import SizeArgument

aten = torch.ops.aten


def freeze_sizes(flow: Flow, nodes: Mapping[fx.Node, fx.Node], kept: Kept) -> None:
    """Scale back sizes that are read from a shrinking dim, so that integers of the graph keep meaning original sizes."""
    for old, new in nodes.items():
        if old.target is not aten.sym_size.int or _pair(old)[0] not in flow.dims:
            continue
        source, place = _pair(old)
        dim = flow.dims[source][place]
        if changes(dim, kept):
            _scaled_uses(new, new_size(dim, kept), dim.size)


def _pair(node: fx.Node) -> tuple[Any, Any]:
    """Return the two arguments of sym_size: a value and a place."""
    return node.args[0], node.args[1]


def _scaled_uses(node: fx.Node, divide: int, times: int) -> None:
    divide, times = _lowest_terms(divide, times)
    with node.graph.inserting_after(node):
        quotient = node.graph.call_function(operator.floordiv, (node, divide))
    with node.graph.inserting_after(quotient):
        scaled = node.graph.call_function(operator.mul, (quotient, times))
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not quotient)


def resize(flow: Flow, nodes: Mapping[fx.Node, fx.Node], kept: Kept) -> None:
    """Rewrite the integer arguments that are sizes of dims that change."""
    for old, sizes in flow.sizes.items():
        for size in sizes:
            if changes(size.dim, kept):
                _set(nodes[old], size.path, lambda value, s=size, n=nodes[old]: _resized(n, value, s, kept))


def loosen_views(flow: Flow, nodes: Mapping[fx.Node, fx.Node], kept: Kept) -> None:
    """Replace views of values that are cut by reshapes: a view that the original's strides allow may be impossible for the cut value's."""
    for old, new in nodes.items():
        moved = any(changes(dim, kept) for dim in flat_dims(flow.dims.get(old, ())))
        if old.target is aten.view.default and moved and not is_written(old):
            new.target = aten.reshape.default


def _resized(node: fx.Node, value: Any, said: SizeArgument, kept: Kept) -> Any:
    dim, size = said.dim, new_size(said.dim, kept)
    if said.offset and value == dim.size + said.offset:
        return type(value)(size + said.offset)
    if isinstance(value, fx.Node):
        return _scaled(node, value, dim.size, size)
    if isinstance(value, int) and abs(value) == dim.size:
        return size if value > 0 else -size
    if value == -1:
        return value
    raise VerifyError(
        f"{node.name}: an argument is {value}, its dim has {dim.size} indices (a bug of the rule: please report)",
        node.name,
    )


def _lowest_terms(old: int, new: int) -> tuple[int, int]:
    """Return the ratio of two sizes in lowest terms: batch times heads, 12 → 6, halves at every batch."""
    shared = math.gcd(old, new)
    return old // shared, new // shared


def _scaled(node: fx.Node, value: fx.Node, old: int, new: int) -> fx.Node:
    old, new = _lowest_terms(old, new)
    with node.graph.inserting_before(node):
        quotient = node.graph.call_function(operator.floordiv, (value, old))
        return node.graph.call_function(operator.mul, (quotient, new))


def _set(node: fx.Node, path: Path, change: Any) -> None:
    """Replace the value at a path into a node's arguments."""
    kind, key, *rest = path
    if kind == "args":
        args = list(node.args)
        args[int(key)] = _at(args[int(key)], rest, change)
        node.args = tuple(args)
    else:
        node.kwargs = {**node.kwargs, str(key): _at(node.kwargs[str(key)], rest, change)}


def _at(value: Any, path: list[str | int], change: Any) -> Any:
    if not path or not isinstance(value, (list, tuple)):
        return change(value)
    items = list(value)
    items[int(path[0])] = _at(items[int(path[0])], path[1:], change)
    return items
