"""Dynamic shapes: the user's request in torch.export's form, and the sizes that are dynamic in an exported program."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from fxprune.ir import is_free, trees
from fxprune.ir.signature import shape_tree


def named_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Any) -> Any:
    """Return `dynamic` (dynamic_shapes as a user gives them) in torch.export's form, keyed by parameter name."""
    if dynamic is None or dynamic is False:
        return None
    names = list(inspect.signature(model.forward).parameters)[: len(args)]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if dynamic is True:
        return {name: pytree.tree_map(_auto, value) for name, value in given.items()}
    if isinstance(dynamic, Mapping):
        return {name: dynamic.get(name) for name in given}
    return dynamic


def _auto(value: Any) -> Any:
    return dict.fromkeys(range(value.dim()), Dim.AUTO) if isinstance(value, Tensor) else None


def with_constants(shapes: Any, extra: Mapping[str, Any]) -> Any:
    """Return shapes with entries for keywords that are constant."""
    return {**shapes, **dict.fromkeys(extra)} if isinstance(shapes, dict) else shapes


def settle_shapes(exported: ExportedProgram, shapes: Any) -> Any:
    """Return `shapes` without the hints that torch.export did not follow: an AUTO size on which the code depends comes out fixed.

    With such a hint, a second export would take a loop that was unrolled over that size for dynamic.
    """
    if not isinstance(shapes, Mapping):
        return shapes
    args, kwargs = pytree.tree_unflatten(_inputs(exported), exported.call_spec.in_spec)
    values = _keyed(exported, args, kwargs)
    return {name: _settled_leaf(shape, values.get(name)) for name, shape in shapes.items()}


def _settled_leaf(shape: Any, value: Any) -> Any:
    if isinstance(value, Tensor) and isinstance(shape, Mapping):
        return {i: hint for i, hint in shape.items() if hint != Dim.AUTO or is_free(value.shape[i])}
    if isinstance(value, (list, tuple)) and isinstance(shape, (list, tuple)):
        return [_settled_leaf(*pair) for pair in zip(shape, value, strict=True)]
    return shape


def dynamic_of(exported: ExportedProgram) -> Any:
    """Return AUTO wherever an exported input has a symbolic size; None where all are fixed."""
    values, spec = _inputs(exported), exported.call_spec.in_spec
    if not any(symbolic(value) for value in values):
        return None
    args, kwargs = shape_tree(spec, [auto_symbolic(value) for value in values])
    return (*args, *kwargs.values()) if not kwargs else _keyed(exported, args, kwargs)


def _inputs(exported: ExportedProgram) -> list[Any]:
    """Return the fake values of the user's inputs, flat; constants among them (a flag, None) as they are."""
    specs = exported.graph_signature.input_specs
    names = {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}
    nodes = exported.graph.find_nodes(op="placeholder")
    return [node.meta.get("val") for node in nodes if node.name in names]


def _keyed(exported: ExportedProgram, args: Any, kwargs: Any) -> dict[str, Any]:
    names = trees(exported.module(check_guards=False)).orig_args
    return {**dict(zip(names, args, strict=False)), **kwargs}


def symbolic(value: Any) -> bool:
    """Return whether a value has a size that varies."""
    return isinstance(value, Tensor) and any(map(is_free, value.shape))


def auto_symbolic(value: Any) -> Any:
    """Return AUTO for each size of a value that varies; None where none does."""
    if not symbolic(value):
        return None
    return {i: Dim.AUTO for i, size in enumerate(value.shape) if is_free(size)}
