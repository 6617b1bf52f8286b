"""Dynamic shapes: the user's request in torch.export's form, and the sizes that are dynamic in a captured graph."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from fxprune.ir import is_free, trees
from fxprune.ir.signature import shape_tree


def named_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Any) -> Any:
    """Return `dynamic` (dynamic_shapes as a user gives them) in torch.export's form, keyed by parameter name."""
    if dynamic is None or dynamic is False:
        return None
    try:
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except TypeError:  # a wrong call: torch.export says what is wrong with it
        return None if dynamic is True else dynamic
    if dynamic is True:
        return {name: pytree.tree_map(_auto, value) for name, value in given.items()}
    if isinstance(dynamic, Mapping):
        return {name: dynamic.get(name) for name in given}
    if isinstance(dynamic, (tuple, list)) and len(dynamic) == len(given):
        return dict(zip(given, dynamic, strict=True))
    return dynamic


def _auto(value: Any) -> Any:
    return dict.fromkeys(range(value.dim()), Dim.AUTO) if isinstance(value, Tensor) else None


def with_constants(shapes: Any, extra: Mapping[str, Any]) -> Any:
    """Return shapes with entries for keywords that are constant."""
    return {**shapes, **dict.fromkeys(extra)} if isinstance(shapes, dict) else shapes


def graph_shapes(graph: fx.GraphModule, fixed: Collection[tuple[str, int]] = ()) -> Any:
    """Return the dynamic shapes of a graph, by argument: AUTO for each size of an input that varies; None where none does.

    What the user asked for is not repeated: a size on which the code depends came out fixed, and a second export would take a loop that
    was unrolled over it for dynamic. `fixed` are more sizes, (input, dimension), that are left out.
    """
    leaves = [_varying(node, fixed) for node in graph.graph.find_nodes(op="placeholder")]
    if not any(leaves):
        return None
    info = trees(graph)
    args, kwargs = shape_tree(info.in_spec, leaves)
    return dict(zip(info.orig_args, (*args, *kwargs.values()), strict=True))


def _varying(node: fx.Node, fixed: Collection[tuple[str, int]]) -> dict[int, Any] | None:
    """Return AUTO for each size of an input that varies; None where none does."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    found = {i for i, size in enumerate(value.shape) if is_free(size) and (node.name, i) not in fixed}
    return dict.fromkeys(sorted(found), Dim.AUTO) or None
