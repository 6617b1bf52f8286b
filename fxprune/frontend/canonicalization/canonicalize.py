"""Canonicalization: small graph passes that express the same in fewer kinds of operators, so that rules stay short.

None of them changes what is computed. Each is a function that changes a graph in place; `CANONICALIZATIONS` is their order.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.frontend.canonicalization.own_orders import own_orders
from fxprune.frontend.canonicalization.recurrent_layers import split_recurrent
from fxprune.frontend.canonicalization.restack import restack
from fxprune.frontend.canonicalization.unstack import unstack
from fxprune.ir import Program, attribute, bind, call, hint, shape_of
from fxprune.ir.edit import size_of
from fxprune.rewrite import remove_dead
from fxprune.rewrite.constant_folding import fold_constants
from fxprune.rewrite.dead_code import pass_on
from fxprune.rewrite.shared_tables import decouple_tables
from fxprune.rules import is_written, traits_of
from fxprune.rules.aliasing import returns_alias

aten = torch.ops.aten


def canonicalize(program: Program) -> Program:
    """Run every canonicalization pass once, in order; the program's graph is changed in place (capture owns it)."""
    for each in CANONICALIZATIONS:
        each(program.graph_module)
        program.graph.lint()
    program.graph_module.delete_all_unused_submodules()
    program.graph_module.recompile()
    program.graph_module.eval()
    return decouple_tables(program)


def inline_regions(graph: fx.GraphModule) -> None:
    """Inline `with torch.no_grad()` and a disabled autocast; an enabled autocast stays (it has no rule, and pins)."""
    higher = torch.ops.higher_order
    for node in list(graph.graph.nodes):
        if node.target is higher.wrap_with_set_grad_enabled:
            _inline(graph, node, node.args[1], node.args[2:])
        elif node.target is higher.wrap_with_autocast and node.args[2] is False:
            _inline(graph, node, node.args[4], node.args[5:])


def _inline(graph: fx.GraphModule, node: fx.Node, body: fx.Node, inputs: tuple[Any, ...]) -> None:
    inner = attribute(graph, str(body.target)).graph
    values = dict(zip(inner.find_nodes(op="placeholder"), inputs, strict=True))
    with graph.graph.inserting_before(node):
        for each in inner.nodes:
            if each.op not in ("placeholder", "output"):
                values[each] = graph.graph.node_copy(each, lambda n: values[n])
    results = inner.output_node().args[0]
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(values[results[user.args[1]]])
        graph.graph.erase_node(user)
    graph.graph.erase_node(node)
    if not body.users:
        graph.graph.erase_node(body)


def drop_assertions(graph: fx.GraphModule) -> None:
    """Remove assertions of sizes and dtypes, which hold for the original model only."""
    for node in list(graph.graph.nodes):
        if traits_of(node.target).asserts and not node.users:
            graph.graph.erase_node(node)


def explicit_sizes(graph: fx.GraphModule) -> None:
    """Write out the sizes of `view_as(other)` and the like, which copy sizes, not meanings."""
    targets = {
        aten.view_as.default: aten.reshape.default,
        aten.reshape_as.default: aten.reshape.default,
        aten.expand_as.default: aten.expand.default,
    }
    for node in list(graph.graph.nodes):
        if node.target in targets:
            source, other = node.args
            with graph.graph.inserting_before(node):
                sizes = [size_of(graph, other, i) for i in range(other.meta["val"].dim())]
            _become(node, targets[node.target], (source, sizes))


def _become(node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    """Replace a node's operator by another with the same result."""
    node.target, node.args, node.kwargs = target, args, {}


def explicit_squeeze(graph: fx.GraphModule) -> None:
    """Write out the dims of `squeeze()`, which depends on the sizes that are 1: an axis pruned to one index would vanish."""
    for node in list(graph.graph.nodes):
        if node.target is aten.squeeze.default:
            gone = [i for i, size in enumerate(node.args[0].meta["val"].shape) if _is_one(size)]
            _become(node, aten.squeeze.dims, (node.args[0], gone))


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def explicit_splits(graph: fx.GraphModule) -> None:
    """Replace chunk and split by a size by split_with_sizes, and narrow and unsafe variants by slices and splits."""
    splits = (
        aten.chunk.default,
        aten.split.Tensor,
        aten.unsafe_split.Tensor,
        aten.unsafe_chunk.default,
        aten.tensor_split.sections,
    )
    for node in list(graph.graph.nodes):
        bound = bind(node) if node.op == "call_function" else {}
        if node.target in splits:
            place = bound["dim"].value
            sizes = [value.shape[place] for value in node.meta["val"]]
            if all(isinstance(size, int) for size in sizes):
                _become(node, aten.split_with_sizes.default, (node.args[0], sizes, place))
        elif node.target in (aten.unsafe_split_with_sizes.default, aten.split.sizes):
            _become(node, aten.split_with_sizes.default, (node.args[0], node.args[1], bound["dim"].value))
        elif node.target is aten.narrow.default and all(isinstance(i, int) for i in node.args[1:]):
            source, place, start, length = node.args
            _become(node, aten.slice.Tensor, (source, place, start, start + length))


def explicit_scale(graph: fx.GraphModule) -> None:
    """Write out the scale of attention, which by default depends on the head size: pruning must not change it."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        size = node.args[0].meta["val"].shape[-1]
        if node.kwargs.get("scale") is None and isinstance(size, int):
            node.kwargs = {**node.kwargs, "scale": 1.0 / math.sqrt(size)}


def contiguous_pairs(graph: fx.GraphModule) -> None:
    """Make the operand of `view_as_complex` contiguous: it requires even strides, which a cut beside it may make odd."""
    for node in graph.graph.find_nodes(op="call_function", target=aten.view_as_complex.default):
        source = node.args[0]
        if source.target is not aten.contiguous.default and not is_written(node):
            with graph.graph.inserting_before(node):
                node.args = (call(graph, aten.contiguous.default, (source,)),)


def functionalize(graph: fx.GraphModule) -> None:
    """Replace an in-place pointwise operator on a value that nothing aliases by its functional form, whose result later readers read."""
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        target = _functional_form(node)
        if target is None or not _is_fresh(node.args[0], order[node], order):
            continue
        source = node.args[0]
        later = [user for user in source.users if order.get(user, -1) > order[node]]
        if _keeps_type(source, node) and _gives_type_of(graph, node, target):
            node.target = target
            for user in later:
                user.replace_input_with(source, node)


def _gives_type_of(graph: fx.GraphModule, node: fx.Node, target: Any) -> bool:
    """Return whether the functional form keeps the type that was written into (a logical operator gives booleans)."""
    made = target(*fx.map_arg(node.args, _meta), **fx.map_arg(node.kwargs, _meta))
    return isinstance(made, Tensor) and made.dtype == node.meta["val"].dtype


def _meta(node: fx.Node) -> Any:
    """Return a stand-in for a value, on the meta device."""
    value, sizes = node.meta["val"], shape_of(node.meta["val"])
    return hint(value) if sizes is None else torch.empty(sizes, dtype=value.dtype, device="meta")


def _functional_form(node: fx.Node) -> Any:
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.name.endswith("_"):
        return None
    if node.target.namespace != "aten" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    packet = getattr(aten, node.target._schema.name.removeprefix("aten::").rstrip("_"), None)
    overloads = [getattr(packet, name) for name in packet.overloads()] if packet is not None else []
    return next((found for found in overloads if _arguments(found) == _arguments(node.target)), None)


def _arguments(target: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in target._schema.arguments]


def _is_fresh(source: fx.Node, at: int, order: dict[fx.Node, int]) -> bool:
    """Return whether an operator made a value, and no view of it is read after the write."""
    if source.op != "call_function" or returns_alias(source) or source.target is operator.getitem:
        return False
    return not any(order.get(reader, at) > at for view in _views(source, at, order) for reader in view.users)


def _views(source: fx.Node, at: int, order: dict[fx.Node, int]) -> list[fx.Node]:
    """Return the values that were made before a write and may share memory with a value, views of views included."""
    views = [user for user in source.users if returns_alias(user) and order.get(user, at) < at]
    return [*views, *(deeper for view in views for deeper in _views(view, at, order))]


def _keeps_type(source: fx.Node, node: fx.Node) -> bool:
    before, after = source.meta["val"], node.meta["val"]
    return isinstance(after, Tensor) and before.dtype == after.dtype and before.shape == after.shape


def drop_aliases(graph: fx.GraphModule) -> None:
    """Remove nodes that pass a value on as it is (`alias`, `x[:]`, a cast to its own dtype), unless something writes into it."""
    pass_on(graph, lambda node: _is_alias(node) or _takes_all(node))


def _is_alias(node: fx.Node) -> bool:
    return traits_of(node.target).passes in ("alias", "cast") and _same_kind(node)


def _takes_all(node: fx.Node) -> bool:
    """Return whether a node is a slice of all positions, of a size that is not known."""
    if node.target is not aten.slice.Tensor:
        return False
    start, end, step = (bind(node)[name].value for name in ("start", "end", "step"))
    return start in (None, 0) and end in (None, sys.maxsize) and step == 1


def _same_kind(node: fx.Node) -> bool:
    source: Any = node.args[0]
    before, after = source.meta["val"], node.meta["val"]
    copies = node.kwargs.get("copy") or node.kwargs.get("memory_format") is not None or True in node.args[1:]
    return before.dtype == after.dtype and before.device == after.device and not copies


def _fold(graph: fx.GraphModule) -> None:
    """Replace values that depend on no input and no parameter by buffers, whose dims are free."""
    fold_constants(graph)


def clean(graph: fx.GraphModule) -> None:
    """Remove nodes that no result needs, and weights that no node reads."""
    remove_dead(graph)


CANONICALIZATIONS: tuple[Callable[[fx.GraphModule], None], ...] = (
    inline_regions,
    drop_assertions,
    explicit_sizes,
    explicit_squeeze,
    explicit_splits,
    explicit_scale,
    contiguous_pairs,
    functionalize,
    drop_aliases,
    restack,
    split_recurrent,
    unstack,
    clean,
    _fold,
    own_orders,
    clean,
)
