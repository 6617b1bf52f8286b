"""Rewrites before ONNX of operators on images: pools and resampling that torch's exporter lacks or writes wrongly."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.export.onnx_forms.reductions import give_values, reads_values_only, values_of
from fxprune.ir import bind, call
from fxprune.ir.edit import add_buffer, size_of
from fxprune.rules import packet_of

aten = torch.ops.aten

#: an adaptive pool: the number of its spatial dims, and the reduction over one part of a dim
ADAPTIVE: dict[Any, tuple[int, Any]] = {
    aten.adaptive_max_pool1d: (1, aten.amax.default),
    aten.adaptive_max_pool2d: (2, aten.amax.default),
    aten.adaptive_max_pool3d: (3, aten.amax.default),
    aten.adaptive_avg_pool3d: (3, aten.mean.dim),
}


def pool_without_padding(graph: fx.GraphModule, node: fx.Node) -> None:
    """Pad by what is nearly zero before max pooling: ONNX Runtime merges zeros into the pool, where padding counts as −∞."""
    pad: Any = node.args[0]
    if packet_of(pad.target) not in (aten.pad, aten.constant_pad_nd):
        return
    bound = bind(pad)
    if bound["value"].value in (0, None) and ("mode" not in bound or bound["mode"].value == "constant"):
        amounts = bound["pad"].value
        node.replace_input_with(
            pad, call(graph, aten.constant_pad_nd.default, (bound["self"].value, amounts, _NEARLY_ZERO))
        )


_NEARLY_ZERO = 1e-30


def divided_pool(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return an average pool with a divisor of its own as a plain one, scaled: the exporter ignores the divisor."""
    bound = values_of(node)
    divisor, kernel, rank = bound["divisor_override"], bound["kernel_size"], len(bound["kernel_size"])
    if not isinstance(divisor, int) or bound["ceil_mode"]:
        return None
    area = math.prod(kernel) if len(kernel) == rank else kernel[0] ** rank
    whole = (*node.args[:1], kernel, bound["stride"], bound["padding"], False, True)
    plain = call(graph, node.target, whole)
    return call(graph, aten.mul.Tensor, (plain, area / divisor))


def windowed_pool(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return an adaptive pool as reductions over the parts of one dim after another; stays where positions are read or sizes vary."""
    rank, reduce = ADAPTIVE[packet_of(node.target)]
    source: Any = node.args[0]
    several = isinstance(node.meta["val"], (tuple, list))
    if several and not reads_values_only(node):
        return None
    before = source.meta["val"].shape[-rank:]
    after = (node.meta["val"][0] if several else node.meta["val"]).shape[-rank:]
    if not all(isinstance(size, int) for size in (*before, *after)):
        return None
    for place in range(rank):
        source = _pooled_dim(graph, source, place - rank, after[place], reduce)
    if not several:
        return source  # type: ignore[no-any-return]
    give_values(graph, node, source)
    return None


def _pooled_dim(graph: fx.GraphModule, source: fx.Node, dim: int, count: int, reduce: Any) -> fx.Node:
    """Reduce `count` parts of a dim, which may overlap by a position, to one position each."""
    size = source.meta["val"].shape[dim]
    if size == count:
        return source
    bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    parts = [call(graph, aten.slice.Tensor, (source, dim, *each)) for each in bounds]
    return call(graph, aten.cat.default, ([call(graph, reduce, (part, [dim], True)) for part in parts], dim))


def resampled(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return a linear resampling as a product with a constant matrix for each dim: what the operator makes of unit vectors."""
    source: Any = node.args[0]
    sizes = (*source.meta["val"].shape[-2:], *node.meta["val"].shape[-2:])
    if not all(isinstance(size, int) for size in sizes):
        return None
    for dim in (0, 1):
        matrix = _resampling_matrix(node, dim, sizes[dim]).to(source.meta["val"].dtype)
        held = add_buffer(graph, f"_resample_{node.name}", matrix)
        turned = dim == 0
        columns = call(graph, aten.transpose.int, (source, -2, -1)) if turned else source
        source = call(graph, aten.matmul.default, (columns, held))
        source = call(graph, aten.transpose.int, (source, -2, -1)) if turned else source
    return source  # type: ignore[no-any-return]


def _resampling_matrix(node: fx.Node, dim: int, size: int) -> Tensor:
    """Return the matrix (size × size after) of one of two dims; the other keeps two positions (torch errs at one), of which one is read."""
    given = values_of(node)
    units = torch.eye(size, dtype=torch.float64).unsqueeze(0).unsqueeze(3 - dim)
    wide = units.repeat_interleave(2, 3 - dim)
    alone = [
        values and [value if i == dim else kept for i, value in enumerate(values)]
        for values, kept in ((given["output_size"], 2), (given["scale_factors"], 1.0))
    ]
    made: Tensor = node.target(wide, alone[0], given["align_corners"], alone[1])  # type: ignore[operator]
    return made[0].select(2 - dim, 0)


def unshuffled(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return pixel_unshuffle as views: the operator that the exporter writes has the channels in another order."""
    source, factor = node.args[:2]
    *lead, channels, height, width = (size_of(graph, source, i) for i in range(source.meta["val"].dim()))  # type: ignore[arg-type, union-attr]
    rows, columns = (divided(graph, size, factor) for size in (height, width))
    rank = len(lead)
    split = call(graph, aten.reshape.default, (source, [*lead, channels, rows, factor, columns, factor]))
    order = [*range(rank + 1), rank + 2, rank + 4, rank + 1, rank + 3]
    turned = call(graph, aten.permute.default, (split, order))
    return call(graph, aten.reshape.default, (turned, [*lead, -1, rows, columns]))


def divided(graph: fx.GraphModule, size: Any, by: Any) -> Any:
    """Return a size divided by a number, as a node where it is symbolic."""
    return size // by if isinstance(size, int) else call(graph, operator.floordiv, (size, by))
