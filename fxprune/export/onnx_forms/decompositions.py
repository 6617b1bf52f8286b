"""Decompositions, node by node, of operators that torch's exporter has no ONNX form for.

The exporter traces the whole graph anew for them, more than half of the time of a file, although few nodes change: most graphs write
into no value, and most operators have a form of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._ops import OperatorBase, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

aten = torch.ops.aten

_VIEWS = frozenset({aten.view.default, aten._unsafe_view.default})
"""Operators whose result, where it has the sizes of the operand, is the operand."""

Table = Mapping[Any, Callable[..., Any]]


def decompose(exported: ExportedProgram, table: Table, kept: Callable[[Any], bool]) -> bool:
    """Replace, in place, the nodes that torch would decompose; False, with nothing changed, where only a trace of the whole graph can.

    `table` has the decompositions of operators that have no ONNX form; `kept` says of a composite operator whether torch keeps it.
    """
    nodes = [node for node in exported.graph.nodes if node.op not in ("placeholder", "output")]
    if not all(map(_is_plain, nodes)) or any(map(_has_size_of_values, nodes)):
        return False
    try:
        parts = {node: _traced(node, table) for node in nodes if _changes(node.target, table, kept)}
    except Exception:  # noqa: BLE001 (what does not trace alone may trace in its graph)
        return False
    inside = [inner for part in parts.values() for inner in part.nodes]
    if not all(_is_plain(inner) for inner in inside if inner.op not in ("placeholder", "output")):
        return False
    if not all(_is_whole(*each) for each in parts.items()):
        return False
    known: dict[Any, fx.Node] = {}
    for node in nodes:
        if node in parts:
            _rename(exported, _put(node, parts[node], known))
        else:
            _know(node, known)
    exported.graph.lint()
    exported.graph_module.recompile()
    return True


def _rename(exported: ExportedProgram, taken: Mapping[str, Any]) -> None:
    """Let the signature name results by the nodes that give them now."""
    for spec in exported.graph_signature.output_specs:
        if isinstance(spec.arg, TensorArgument) and spec.arg.name in taken:
            spec.arg.name = taken[spec.arg.name].name


def _is_whole(node: fx.Node, part: fx.Graph) -> bool:
    """Return whether a graph gives all that a node does: a tensor, or several that are taken one by one."""
    (result,) = part.output_node().args
    if isinstance(result, fx.Node):
        return True
    taken = all(user.target is operator.getitem for user in node.users)
    return taken and isinstance(result, (tuple, list)) and all(isinstance(each, fx.Node) for each in result)


def _know(node: fx.Node, known: dict[Any, fx.Node]) -> fx.Node:
    """Return the first node with the size that a node computes, which is kept in `known`; the node itself where it computes none."""
    value = node.meta.get("val")
    return known.setdefault(value.node.expr, node) if isinstance(value, torch.SymInt) else node


def _is_plain(node: fx.Node) -> bool:
    """Return whether a node calls an operator that writes nothing, or a function of Python on sizes."""
    if node.op != "call_function":
        return False
    if isinstance(node.target, OpOverload):
        return not node.target._schema.is_mutable
    return not isinstance(node.target, OperatorBase)


def _has_size_of_values(node: fx.Node) -> bool:
    """Return whether some size of a value depends on values: traced again, it would be another one."""
    return bool(free_unbacked_symbols(node.meta.get("val")))


def _changes(target: Any, table: Table, kept: Callable[[Any], bool]) -> bool:
    if not isinstance(target, OpOverload):
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return target in table or (composite and not kept(target))


def _traced(node: fx.Node, table: Table) -> fx.Graph:
    """Return a graph of what a node computes; its placeholders are the nodes among the arguments, in order."""
    flat, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
    places = [i for i, value in enumerate(flat) if isinstance(value, fx.Node)]
    values = [flat[i].meta["val"] for i in places]

    def call(*given: Any) -> Any:
        filled = list(flat)
        for i, value in zip(places, given, strict=True):
            filled[i] = value
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    mode = detect_fake_mode(values)
    assert mode is not None
    with mode:
        graph = make_fx(call, decomposition_table=dict(table))(*values).graph
    graph.eliminate_dead_code()
    return graph


def _put(node: fx.Node, part: fx.Graph, known: dict[Any, fx.Node]) -> dict[str, Any]:
    """Put a graph in the place of a node, without the sizes that are known; return what took the place of it and its results, by name."""
    sources = iter(
        value for value in pytree.tree_leaves((node.args, dict(node.kwargs))) if isinstance(value, fx.Node)
    )
    made: dict[fx.Node, Any] = {}
    result: Any = None
    with node.graph.inserting_before(node):
        for inner in part.nodes:
            if inner.op == "placeholder":
                made[inner] = next(sources)
            elif inner.op == "output":
                result = fx.map_arg(inner.args[0], made.__getitem__)
            else:
                made[inner] = _copied(inner, node, made, known)
    taken = {node.name: result}
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])
            taken[user.name] = result[user.args[1]]
            node.graph.erase_node(user)
    node.graph.erase_node(node)
    return taken


def _is_idle_view(inner: fx.Node, source: fx.Node) -> bool:
    """Return whether a node is a view of its source with the same sizes."""
    value, before = inner.meta["val"], source.meta["val"]
    if inner.target not in _VIEWS or not isinstance(value, Tensor) or not isinstance(before, Tensor):
        return False
    return value.dtype == before.dtype and list(map(str, value.shape)) == list(map(str, before.shape))


def _copied(inner: fx.Node, node: fx.Node, made: dict[fx.Node, Any], known: dict[Any, fx.Node]) -> fx.Node:
    """Return a copy of a node of a part, or the node that has its value: a size that is known, or a source of the same sizes."""
    source: fx.Node | None = (
        made.get(inner.args[0]) if inner.args and isinstance(inner.args[0], fx.Node) else None
    )
    if source is not None and source.op != "placeholder" and _is_idle_view(inner, source):
        return source
    copy = node.graph.node_copy(inner, made.__getitem__)
    copy.meta = {**node.meta, **inner.meta}
    first = _know(copy, known)
    if first is not copy:
        node.graph.erase_node(copy)
    return first
