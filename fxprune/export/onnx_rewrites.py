"""Rewrites before ONNX: operators that torch's exporter lacks or writes wrongly, in terms of those that it writes rightly.

`REWRITES` has a row for each. A file is compared with the program as it was before, so that a wrong row is an error and no wrong file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.export.onnx_forms.elementwise import (
    angle_of,
    bounded,
    extreme_number,
    hypotenuse,
    kept_scalar,
    mean_slope,
    rectified,
    rounded,
    with_sign,
    without_addend,
)
from fxprune.export.onnx_forms.recurrent import projected_lstm
from fxprune.export.onnx_forms.reductions import (
    RUNNING,
    distances,
    kept_position,
    over_all_dims,
    ranked_value,
    running,
    searched,
    stable_sort,
    values_of,
)
from fxprune.export.onnx_forms.scatters import index_reduced, scattered
from fxprune.export.onnx_forms.spatial import (
    ADAPTIVE,
    divided_pool,
    pool_without_padding,
    resampled,
    unshuffled,
    windowed_pool,
)
from fxprune.export.real_pairs import as_real_pairs
from fxprune.ir import Program, bind, call, copy_graph, rebuild
from fxprune.ir.arguments import unbind
from fxprune.ir.edit import add_buffer, move_uses, size_of
from fxprune.rules import packet_of
from fxprune.rules.traits import packets

aten = torch.ops.aten

Rewrite: TypeAlias = Callable[[fx.GraphModule, fx.Node], "fx.Node | None"]
"""Returns the value that replaces a node, inserted before it; None where the node can stay."""


def rewrite_for_onnx(program: Program) -> Program:
    """Return a program that computes the same in operators that torch's ONNX exporter writes rightly; only tensors are returned."""
    program = rebuild(program, copy_graph(program), {})
    graph = program.graph_module
    for node in list(graph.graph.nodes):
        row = REWRITES.get(packet_of(node.target)) if node.op == "call_function" else None
        if row is None:
            continue
        with graph.graph.inserting_before(node):
            made = row(graph, node)
        if made is not None:
            move_uses(graph, node, made)
    for node in reversed(graph.graph.nodes):
        if node.op == "call_function" and packet_of(node.target) in REWRITES and not node.users:
            graph.graph.erase_node(node)
    as_real_pairs(graph)
    _return_tensors(graph)
    graph.recompile()
    return program


def _return_tensors(graph: fx.GraphModule) -> None:
    """Drop outputs that are no tensors: a file has no place for them."""
    output = graph.graph.output_node()
    leaves = pytree.tree_leaves(output.args[0], is_leaf=lambda x: x is None)
    tensors = [
        leaf for leaf in leaves if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor)
    ]
    if len(tensors) == len(leaves):
        return
    output.args = (tuple(tensors),)
    codegen: Any = graph.graph._codegen
    plain = pytree.tree_structure((0,) * len(tensors))
    graph.graph.set_codegen(type(codegen)(codegen.pytree_info._replace(out_spec=plain)))
    graph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _promoted(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Convert operands to the result's type: the exporter finds no operator for an integer tensor and a fraction.

    Sums and products of booleans are their logical forms, and scalars near 0 and 1 are kept.
    """
    wanted, logical = node.meta["val"].dtype, _LOGICAL.get(packet_of(node.target))
    if wanted == torch.bool and logical is not None and _is_node(node.args[0]) and _is_node(node.args[1]):
        return call(graph, logical, node.args)
    other = [n for n in node.all_input_nodes if _dtype(n) not in (wanted, None)]
    for operand in other:
        node.replace_input_with(operand, call(graph, aten.to.dtype, (operand, wanted)))
    return kept_scalar(graph, node)


_LOGICAL = {aten.add: aten.logical_or.default, aten.mul: aten.logical_and.default}


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def _typed(graph: fx.GraphModule, node: fx.Node) -> None:
    """Name the type of what is filled: the exporter takes fractions where the program has integers."""
    node.kwargs = {**node.kwargs, "dtype": node.meta["val"].dtype}


def _sliced(graph: fx.GraphModule, node: fx.Node) -> None:
    """Return the parts of a split by sizes that are computed as slices: the exporter requires numbers."""
    bound = values_of(node)
    sizes = bound["split_sizes"]
    if all(isinstance(size, int) for size in sizes):
        return
    ends: list[Any] = [0]
    for size in sizes:
        ends.append(
            call(graph, operator.add, (ends[-1], size)) if _is_node(ends[-1], size) else ends[-1] + size
        )
    _slice_parts(graph, node, bound["dim"], ends)


def _chunked(graph: fx.GraphModule, node: fx.Node) -> None:
    """Return the chunks of a dimension of symbolic size as slices, for the same reason."""
    bound = values_of(node)
    source, count, dim = bound["self"], bound["chunks"], bound["dim"]
    if isinstance(source.meta["val"].shape[dim], int):
        return
    size = call(graph, aten.sym_size.int, (source, dim % source.meta["val"].dim()))
    part = call(graph, operator.floordiv, (call(graph, operator.add, (size, count - 1)), count))
    _slice_parts(graph, node, dim, [call(graph, operator.mul, (part, place)) for place in range(count + 1)])


def _slice_parts(graph: fx.GraphModule, node: fx.Node, dim: int, ends: list[Any]) -> None:
    for part in list(node.users):
        place: Any = part.args[1]
        made = call(graph, aten.slice.Tensor, (node.args[0], dim, ends[place], ends[place + 1]))
        made.meta["val"] = part.meta["val"]
        move_uses(graph, part, made)


def _is_node(*values: Any) -> bool:
    return any(isinstance(value, fx.Node) for value in values)


def _scattered(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return masked_scatter as a choice between the base and a gather: the n-th place that is marked takes the n-th row of the source.

    A mask that is the same along the last dimension takes whole rows.
    """
    base, mask, source = node.args[:3]
    return _filled(graph, base, mask, source)  # type: ignore[arg-type]


def _filled(graph: fx.GraphModule, base: fx.Node, mask: fx.Node, source: fx.Node) -> fx.Node:
    shape, marked = base.meta["val"].shape, mask.meta["val"].shape
    by_row = len(marked) == len(shape) and marked[-1] == 1 and isinstance(shape[-1], int)
    sizes = [size_of(graph, base, dim) for dim in range(len(shape))]
    wide = call(graph, aten.expand.default, (mask, [*sizes[:-1], 1 if by_row else sizes[-1]]))
    flat = call(graph, aten.reshape.default, (call(graph, aten.to.dtype, (wide, torch.int64)), [-1]))
    place = call(graph, aten.sub.Tensor, (call(graph, aten.cumsum.default, (flat, 0)), 1))
    place = call(graph, aten.clamp.default, (place, 0))
    rows = call(graph, aten.reshape.default, (source, [-1, shape[-1]] if by_row else [-1]))
    taken = call(graph, aten.index_select.default, (rows, 0, place))
    taken = call(graph, aten.view_as.default, (taken, base))
    return call(graph, aten.where.self, (wide, taken, base))


def _put(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return `x[mask] = rows` as masked_scatter; other indices stay."""
    bound = bind(node)
    base, indices, values = (bound[name].value for name in ("self", "indices", "values"))
    masks = [index for index in indices if index is not None]
    if bound["accumulate"].value or len(masks) != 1 or indices[0] is None or _dtype(masks[0]) != torch.bool:
        return None
    whole, part = base.meta["val"].shape, masks[0].meta["val"].shape
    if values.meta["val"].dim() != len(whole) - len(part) + 1:
        return None  # values that are repeated for every place
    mask = masks[0]
    for _ in range(len(whole) - len(part)):
        mask = call(graph, aten.unsqueeze.default, (mask, -1))
    return _filled(graph, base, mask, values)


def _standardized(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return batch norm by the statistics of what it is given (of a weight: standardization) as its formula."""
    bound = values_of(node)
    if not bound["training"] or not isinstance(bound["input"], fx.Node):
        return None
    x, rank = bound["input"], bound["input"].meta["val"].dim()
    dims = [dim for dim in range(rank) if dim != 1]
    mean = call(graph, aten.mean.dim, (x, dims, True))
    centred = call(graph, aten.sub.Tensor, (x, mean))
    variance = call(graph, aten.mean.dim, (call(graph, aten.mul.Tensor, (centred, centred)), dims, True))
    scale = call(graph, aten.rsqrt.default, (call(graph, aten.add.Tensor, (variance, bound["eps"])),))
    result = call(graph, aten.mul.Tensor, (centred, scale))
    for name, kind in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
        if isinstance(bound[name], fx.Node):
            shape = [1, -1, *(1 for _ in range(rank - 2))]
            result = call(graph, kind, (result, call(graph, aten.reshape.default, (bound[name], shape))))
    return result


def _of_four_dims(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return attention over fewer or more than four dims as one over four: the exporter takes no others."""
    rank, bound = node.meta["val"].dim(), values_of(node)
    names, mask = ("query", "key", "value"), bound["attn_mask"]
    leads = {str(bound[name].meta["val"].shape[:-3]) for name in names}  # symbolic sizes have no hash
    masked = mask.meta["val"].dim() if mask is not None else 0
    if (
        rank == 4
        or len(leads) > 1
        or masked > 3
        or {bound[name].meta["val"].dim() for name in names} != {rank}
    ):
        return None
    for name in names:
        sizes = [size_of(graph, bound[name], place) for place in range(max(0, rank - 3), rank)]
        ones = [1] * (3 - len(sizes))
        bound[name] = call(graph, aten.reshape.default, (bound[name], [-1, *ones, *sizes]))
    query, value = node.args[0], node.args[2]
    last = size_of(graph, value, rank - 1)  # type: ignore[arg-type]
    sizes = [*(size_of(graph, query, place) for place in range(rank - 1)), last]  # type: ignore[arg-type]
    return call(graph, aten.reshape.default, (call(graph, node.target, *unbind(node, bound)), sizes))


def _repeated(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return repeats of each element of a flat value by views: the exporter requires a dim, and errs where it is the only one."""
    bound = values_of(node)
    count, source = bound.get("repeats"), bound.get("self")
    if not isinstance(count, int) or not (bound["dim"] is None or source.meta["val"].dim() == 1):  # type: ignore[union-attr]
        return None
    column = call(graph, aten.reshape.default, (source, [-1, 1]))
    wide = call(graph, aten.expand.default, (column, [-1, count]))
    return call(graph, aten.reshape.default, (wide, [-1]))


def _rolled(graph: fx.GraphModule, node: fx.Node) -> None:
    """Shift by less than a dim's size, and count dims from the front: the exporter takes no others."""
    bound, shape = values_of(node), node.meta["val"].shape
    dims = [dim % max(1, len(shape)) for dim in bound["dims"]]
    pairs = zip(bound["shifts"], (shape[dim] for dim in dims), strict=False)
    if dims:
        shifts = [shift % size if isinstance(size, int) and size else shift for shift, size in pairs]
        node.args = (bound["self"], shifts, dims)


def _strided(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the windows of a value that fills its memory, picked from all of its elements in a row: the exporter's form takes others.

    The place of an element is the sum of its indices times the strides.
    """
    bound = values_of(node)
    source, sizes, strides = bound["self"], bound["size"], bound["stride"]
    first, value = bound["storage_offset"] or 0, source.meta["val"]
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    if (
        _is_node(*sizes, *strides, first)
        or not value.permute(order).is_contiguous()
        or value.storage_offset()
    ):
        return None
    places = torch.tensor(first)
    for size, stride in zip(sizes, strides, strict=True):
        places = places[..., None] + torch.arange(size) * stride
    if not isinstance(value.numel(), int) or int(places.max()) >= value.numel():
        return None
    index = add_buffer(graph, f"_places_{node.name}", places.flatten())
    row = call(graph, aten.reshape.default, (call(graph, aten.permute.default, (source, order)), [-1]))
    return call(graph, aten.reshape.default, (call(graph, aten.index_select.default, (row, 0, index)), sizes))


def _squeezed(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Squeeze the dims of size 1 alone: torch leaves the others as they are, ONNX refuses them."""
    bound = values_of(node)
    source, dims, shape = bound["self"], bound["dim"], bound["self"].meta["val"].shape
    dims = [dims] if isinstance(dims, int) else dims
    gone = [dim for dim in dims if shape and isinstance(shape[dim], int) and shape[dim] == 1]
    if len(gone) == len(dims) or len(shape) - len(gone) != node.meta["val"].dim():
        return None
    return call(graph, aten.squeeze.dims, (source, gone)) if gone else source


def _marked(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the marked elements by a mask as index: the exporter has no masked_select."""
    pair = call(graph, aten.broadcast_tensors.default, (list(node.args[:2]),))
    value, mask = (call(graph, operator.getitem, (pair, place)) for place in (0, 1))
    return call(graph, aten.index.Tensor, (value, [mask]))


_JOINS = packets("cat concat concatenate stack hstack vstack dstack row_stack column_stack")

REWRITES: Mapping[Any, Rewrite] = {
    **dict.fromkeys((aten.add, aten.sub, aten.rsub, aten.mul, aten.div, *_JOINS), _promoted),
    **dict.fromkeys((aten.max_pool1d, aten.max_pool2d, aten.max_pool3d), pool_without_padding),
    aten.split_with_sizes: _sliced,
    aten.chunk: _chunked,
    aten.full: _typed,
    aten.masked_scatter: _scattered,
    aten.index_put: _put,
    aten.batch_norm: _standardized,
    **dict.fromkeys(ADAPTIVE, windowed_pool),
    **dict.fromkeys((aten.avg_pool2d, aten.avg_pool3d), divided_pool),
    **dict.fromkeys((aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa), resampled),
    aten.pixel_unshuffle: unshuffled,
    aten.lstm: projected_lstm,
    **dict.fromkeys(RUNNING, running),
    **dict.fromkeys((aten.kthvalue, aten.median), ranked_value),
    **dict.fromkeys((aten.amax, aten.amin), over_all_dims),
    **dict.fromkeys((aten.argmax, aten.argmin), kept_position),
    aten.sort: stable_sort,
    aten.searchsorted: searched,
    **dict.fromkeys((aten.cdist, aten._cdist_forward), distances),
    **dict.fromkeys((aten.scatter, aten.scatter_add, aten.scatter_reduce), scattered),
    aten.index_reduce: index_reduced,
    aten.hypot: hypotenuse,
    aten.copysign: with_sign,
    **dict.fromkeys((aten.fmax, aten.fmin), extreme_number),
    aten.atan2: angle_of,
    aten.baddbmm: without_addend,
    **dict.fromkeys((aten.relu, aten.relu6), rectified),
    **dict.fromkeys((aten.round, aten.floor, aten.ceil, aten.trunc), rounded),
    aten.rrelu: mean_slope,
    aten.clamp: bounded,
    aten.repeat_interleave: _repeated,
    aten.roll: _rolled,
    aten.masked_select: _marked,
    aten.squeeze: _squeezed,
    aten.as_strided: _strided,
    aten.scaled_dot_product_attention: _of_four_dims,
}
