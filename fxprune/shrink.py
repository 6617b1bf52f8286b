"""Shrink: apply a Selection. Members lose the removed indices, integer arguments that are dims follow, every value's size is checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode

from fxprune.analysis import Analysis, analyze, keep_mask
from fxprune.dims import Dim, leaves
from fxprune.errors import SelectionError, VerifyError
from fxprune.flow import flat_dims, identity
from fxprune.graphs import fake_mode
from fxprune.names import Label, counted
from fxprune.program import Program, attribute, copy_graph, rebuild
from fxprune.rules.op import Path, hint
from fxprune.selection import Selection
from fxprune.writes import is_written

aten = torch.ops.aten

Kept = Mapping[Dim, Tensor]


def shrink(program: Program, selection: Selection) -> Program:
    """A smaller program that keeps only what the selection keeps; the given one and its tensors stay as they are.

    Untouched tensors are shared, cut ones are new. SelectionError if the selection does not fit; VerifyError if a value's size
    comes out otherwise than its dims promise (which would be a bug of a rule: report it).
    """
    analysis = analyze(program)
    kept = kept_masks(analysis, selection)
    if all(bool(mask.all()) for mask in kept.values()):
        return program
    graph, nodes = _copy(program)
    tensors = _cut_tensors(program, analysis, kept)
    _freeze_sizes(analysis, nodes, kept)
    _resize(analysis, nodes, kept)
    _loosen_views(analysis, nodes, kept)
    slim = rebuild(program, graph, tensors).replace(labels=_labels(analysis, kept))
    propagate(slim, {nodes[node] for node in analysis.flow.sizes} | (set(graph.nodes) - set(nodes.values())))
    _check_sizes(analysis, nodes, kept)
    return slim


def zeroed(program: Program, selection: Selection) -> Program:
    """The oracle: the same graph and sizes, with the readers of every removed unit set to zero.

    For exact axes the result equals that of `shrink`. SelectionError names inexact axes: for them no zeros of weights say what
    removal does.
    """
    analysis = analyze(program)
    kept = kept_masks(analysis, selection)
    inexact = [name for name in selection if not analysis.axis(name).exact]
    if inexact:
        why = analysis.axis(inexact[0]).why_inexact
        raise SelectionError(
            f"no zeros equal removal on {', '.join(inexact)} ({why}); leave inexact axes out of the claim"
        )
    graph, _ = _copy(program)
    zeros: dict[str, list[str]] = {}
    for name in selection:
        for reader in analysis.axis(name).readers:
            zeros.setdefault(reader, []).append(name)
    tensors = {reader: _zeroed(program, analysis, reader, names, kept) for reader, names in zeros.items()}
    return rebuild(program, graph, _with_ties(program, tensors))


def kept_masks(analysis: Analysis, selection: Selection) -> dict[Dim, Tensor]:
    """The selection as booleans by atom; SelectionError where it names no axis of the program or indices out of range."""
    masks: dict[Dim, Tensor] = {}
    for name in selection:
        axis, indices = analysis.axis(name), selection[name]
        said = selection.sizes.get(name, axis.size)
        if indices[-1] >= axis.size or said != axis.size:
            asked = f"a size of {said}" if said != axis.size else f"index {indices[-1]}"
            raise SelectionError(
                f"axis {name} has {axis.size} indices, the selection speaks of {asked}: it is for another model"
            )
        mask = torch.zeros(axis.size, dtype=torch.bool)
        mask[list(indices)] = True
        masks[axis.leaf] = mask
    return masks


def _copy(program: Program) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    graph = copy_graph(program)
    return graph, dict(zip(program.graph.graph.nodes, graph.nodes, strict=True))


def new_size(dim: Dim, kept: Kept) -> int:
    """The size of a dim when atoms keep what `kept` says."""
    return int(keep_mask(dim, kept).sum()) if changes(dim, kept) else dim.size


def changes(dim: Dim, kept: Kept) -> bool:
    """Whether a dim carries an atom of which the selection speaks."""
    return any(leaf in kept for leaf in leaves(dim))


def _cut_tensors(program: Program, analysis: Analysis, kept: Kept) -> dict[str, Tensor]:
    """New tensors for the members that lose indices; what was one tensor stays one."""
    cut: dict[str, Tensor] = {}
    made: dict[Any, Tensor] = {}
    for node in program.graph.graph.find_nodes(op="get_attr"):
        dims = analysis.flow.dims.get(node, ())
        if any(changes(dim, kept) for dim in dims):
            value = attribute(program.graph, str(node.target))
            key = identity(value)
            made[key] = made[key] if key in made else _cut(value, dims, kept)
            cut[str(node.target)] = made[key]
    return cut


def _cut(value: Tensor, dims: tuple[Dim, ...], kept: Kept) -> Tensor:
    result = value.detach()
    for place, dim in enumerate(dims):
        if changes(dim, kept):
            index = keep_mask(dim, kept).nonzero().flatten().to(value.device)
            result = result.index_select(place, index)
    return nn.Parameter(result, value.requires_grad) if isinstance(value, nn.Parameter) else result


def _zeroed(program: Program, analysis: Analysis, name: str, axes: list[str], kept: Kept) -> Tensor:
    node = next(n for n in program.graph.graph.find_nodes(op="get_attr") if n.target == name)
    value = attribute(program.graph, name)
    result = value.detach().clone()
    own = {analysis.axis(axis).leaf: kept[analysis.axis(axis).leaf] for axis in axes}
    for place, dim in enumerate(analysis.flow.dims[node]):
        gone = (~keep_mask(dim, own)).nonzero().flatten().to(value.device)
        result.index_fill_(place, gone, 0)
    return nn.Parameter(result, value.requires_grad) if isinstance(value, nn.Parameter) else result


def _with_ties(program: Program, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What shares memory with a replaced tensor is replaced too."""
    by_identity = {identity(attribute(program.graph, name)): value for name, value in tensors.items()}
    names = [str(node.target) for node in program.graph.graph.find_nodes(op="get_attr")]
    values = {name: attribute(program.graph, name) for name in names}
    keyed = {name: identity(value) for name, value in values.items() if isinstance(value, Tensor)}
    return {name: by_identity[key] for name, key in keyed.items() if key in by_identity}


def _freeze_sizes(analysis: Analysis, nodes: Mapping[fx.Node, fx.Node], kept: Kept) -> None:
    """Integers of the graph keep speaking of original sizes: a size read from a dim that shrinks is scaled back."""
    for old, new in nodes.items():
        if old.target is not aten.sym_size.int or _pair(old)[0] not in analysis.flow.dims:
            continue
        source, place = _pair(old)
        dim = analysis.flow.dims[source][place]
        if changes(dim, kept):
            _scaled_uses(new, new_size(dim, kept), dim.size)


def _pair(node: fx.Node) -> tuple[Any, Any]:
    """The two arguments of sym_size: a value and a place."""
    return node.args[0], node.args[1]


def _scaled_uses(node: fx.Node, divide: int, times: int) -> None:
    divide, times = _lowest_terms(divide, times)
    with node.graph.inserting_after(node):
        quotient = node.graph.call_function(operator.floordiv, (node, divide))
    with node.graph.inserting_after(quotient):
        scaled = node.graph.call_function(operator.mul, (quotient, times))
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not quotient)


def _resize(analysis: Analysis, nodes: Mapping[fx.Node, fx.Node], kept: Kept) -> None:
    """Rewrite the integer arguments that are sizes of dims that change."""
    for old, sizes in analysis.flow.sizes.items():
        for path, dim in sizes:
            if changes(dim, kept):
                _set(nodes[old], path, lambda value, d=dim, n=nodes[old]: _resized(n, value, d, kept))


def _loosen_views(analysis: Analysis, nodes: Mapping[fx.Node, fx.Node], kept: Kept) -> None:
    """A view that is possible for the strides of the original may not be for the cut value: it becomes a reshape."""
    for old, new in nodes.items():
        dims = flat_dims(analysis.flow.dims.get(old, ()))
        if old.target is aten.view.default and any(changes(dim, kept) for dim in dims) and not is_written(old):
            new.target = aten.reshape.default


def _resized(node: fx.Node, value: Any, dim: Dim, kept: Kept) -> Any:
    size = new_size(dim, kept)
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
    """The ratio of two sizes without what they share: batch times heads, 12 → 6, halves at every batch."""
    shared = math.gcd(old, new)
    return old // shared, new // shared


def _scaled(node: fx.Node, value: fx.Node, old: int, new: int) -> fx.Node:
    old, new = _lowest_terms(old, new)
    with node.graph.inserting_before(node):
        quotient = node.graph.call_function(operator.floordiv, (value, old))
        return node.graph.call_function(operator.mul, (quotient, new))


def _set(node: fx.Node, path: Path, change: Any) -> None:
    """Replace what stands at a path into a node's arguments."""
    kind, key, *rest = path
    if kind == "args":
        args = list(node.args)
        args[int(key)] = _at(args[int(key)], rest, change)
        node.args = tuple(args)
    else:
        node.kwargs = {**node.kwargs, str(key): _at(node.kwargs[str(key)], rest, change)}


def _at(value: Any, path: list[str | int], change: Any) -> Any:
    if not path:
        return change(value)
    if not isinstance(value, (list, tuple)):
        return change(value)
    items = list(value)
    items[int(path[0])] = _at(items[int(path[0])], path[1:], change)
    return items


def propagate(program: Program, edited: set[fx.Node]) -> None:
    """Recompute, on fake tensors, the values of edited nodes and of all that reads a value whose sizes changed."""
    mode = fake_mode(program.graph)
    changed = set(edited)
    with mode, torch.no_grad(), enable_python_dispatcher():
        for node in program.graph.graph.nodes:
            if (
                node in changed
                or node.op == "get_attr"
                or any(source in changed for source in node.all_input_nodes)
            ):
                _propagate(program, node, mode, changed)


def _propagate(program: Program, node: fx.Node, mode: FakeTensorMode, changed: set[fx.Node]) -> None:
    before = node.meta.get("val")
    after = _value(program, node, mode)
    if before is not None and _sizes_text(before) == _sizes_text(after):
        changed.discard(node)
        return
    node.meta["val"] = after
    changed.add(node)


def _sizes_text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(_sizes_text(item) for item in value)
    return str(tuple(value.shape)) if isinstance(value, Tensor) else str(value)


def _value(program: Program, node: fx.Node, mode: FakeTensorMode) -> Any:
    if node.op == "get_attr":
        value = attribute(program.graph, str(node.target))
        before = node.meta.get("val")
        same = isinstance(value, Tensor) and isinstance(before, Tensor) and value.shape == before.shape
        return (
            before if same or not isinstance(value, Tensor) else mode.from_tensor(value, static_shapes=True)
        )
    if node.op != "call_function":
        return node.meta.get("val")
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise VerifyError(
            f"{node.name} = {node.target}: shrunk shapes do not fit: {reason}", node.name
        ) from error


def _check_sizes(analysis: Analysis, nodes: Mapping[fx.Node, fx.Node], kept: Kept) -> None:
    """Every value has the sizes that its dims promise."""
    for old, new in nodes.items():
        promised = _promised(analysis.flow.dims.get(old), kept)
        found = _found(new.meta.get("val"))
        if old in analysis.flow.dims and promised != found:
            raise VerifyError(
                f"{new.name} = {new.target}: its dims promise sizes {promised}, it has {found}", new.name
            )


def _promised(dims: Any, kept: Kept) -> Any:
    return tuple(new_size(d, kept) if isinstance(d, Dim) else _promised(d, kept) for d in dims or ())


def _found(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_found(item) for item in value)
    return tuple(hint(size) for size in value.shape) if isinstance(value, Tensor) else ()


def _labels(analysis: Analysis, kept: Kept) -> dict[Label, str]:
    """The names of axes by where they stand in the shrunk program's tensors, so that a later analysis finds them again."""
    names = {axis.leaf: axis.name for axis in analysis.axes}
    sizes = {leaf: int(mask.sum()) for leaf, mask in kept.items()}
    labels: dict[Label, str] = {}
    for axis in analysis.axes:
        for member in axis.members:
            for ordinal, leaf in enumerate(counted(member.carrier, sizes)):
                if leaf in names:
                    labels[(member.name, member.dim, ordinal)] = names[leaf]
    return labels
