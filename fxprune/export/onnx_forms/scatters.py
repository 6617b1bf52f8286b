"""ONNX forms of writes by index: scatter and index_reduce in the forms that ONNX Runtime computes as torch does."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.export.onnx_forms.reductions import values_of
from fxprune.ir import call
from fxprune.ir.arguments import unbind
from fxprune.ir.edit import size_of

aten = torch.ops.aten


def scattered(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Cut the source to the index, as torch does, and write means as sums over counts; `reduce` of scatter is another operator."""
    bound = values_of(node)
    if not isinstance(bound.get("src"), fx.Node):
        return None
    base, dim, index, kind = bound["self"], bound["dim"], bound["index"], bound.get("reduce")
    source = _cut(graph, bound["src"], index)
    if kind == "mean":
        return _mean(graph, (base, dim, index, source), bound["include_self"])
    if node.target is aten.scatter.reduce:
        name = {"add": "sum", "multiply": "prod"}[str(kind)]
        return call(graph, aten.scatter_reduce.two, (base, dim, index, source, name))
    if source is bound["src"]:
        return None
    return call(graph, node.target, *unbind(node, {**bound, "src": source}))


def _cut(graph: fx.GraphModule, source: fx.Node, index: fx.Node) -> fx.Node:
    """Return the part of a source that an index of fewer positions reads."""
    sizes = zip(source.meta["val"].shape, index.meta["val"].shape, strict=True)
    for dim, (whole, part) in enumerate(sizes):
        if isinstance(whole, int) and isinstance(part, int) and part < whole:
            source = call(graph, aten.slice.Tensor, (source, dim, 0, part))
    return source


def _mean(graph: fx.GraphModule, operands: tuple[Any, ...], with_self: bool) -> fx.Node | None:
    """Return the means of what is written to each place (with the base, or where nothing is written the base alone)."""
    base, dim, index, source = operands
    if not base.meta["val"].is_floating_point():
        return None
    none = call(graph, aten.zeros_like.default, (base,))
    hits = call(
        graph, aten.scatter_add.default, (none, dim, index, call(graph, aten.ones_like.default, (source,)))
    )
    if with_self:
        count = call(graph, aten.add.Tensor, (hits, 1))
    else:
        count = call(graph, aten.clamp.default, (hits, 1))
        base = call(graph, aten.where.self, (call(graph, aten.gt.Scalar, (hits, 0)), none, base))
    summed = call(graph, aten.scatter_add.default, (base, dim, index, source))
    return call(graph, aten.div.Tensor, (summed, count))


def index_reduced(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return index_reduce as a scatter whose index is repeated over the other dims."""
    bound = values_of(node)
    source, rank, dim = bound["source"], bound["source"].meta["val"].dim(), bound["dim"]
    shape = [-1 if i == dim % rank else 1 for i in range(rank)]
    sizes = [size_of(graph, source, i) for i in range(rank)]
    index = call(
        graph, aten.expand.default, (call(graph, aten.reshape.default, (bound["index"], shape)), sizes)
    )
    operands = (bound["self"], dim, index, source)
    if bound["reduce"] == "mean":
        return _mean(graph, operands, bound["include_self"])
    kind = {"include_self": bound["include_self"]}
    return call(graph, aten.scatter_reduce.two, (*operands, bound["reduce"]), kind)
