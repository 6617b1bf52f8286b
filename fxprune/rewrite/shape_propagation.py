"""Shape propagation: run a rewritten graph on fake tensors and check every value's sizes against its dims.

Symbolic sizes run as the numbers of the example inputs, many times faster than symbolic arithmetic; the values that the graph keeps
stay symbolic where they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxprune.analysis.cache import per_program
from fxprune.analysis.dim_inference import sizes_of
from fxprune.errors import VerifyError
from fxprune.ir import Program, attribute, hint
from fxprune.ir.edit import fake_mode, is_same_call

_UNKNOWABLE = (DataDependentOutputException, DynamicOutputShapeException)


def propagate(program: Program, promised: Mapping[fx.Node, Any], before: Program | None = None) -> None:
    """Check every value against its promised sizes, and write the new sizes into the graph's values.

    `promised` has the sizes of each node's result (nested for several results); VerifyError names the first node that can't run on
    the new sizes, or whose result has other sizes. What the program `before` computed from values of the same sizes is not run again.
    """
    mode, known = _plain_values(before) if before else (FakeTensorMode(allow_non_fake_inputs=True), {})
    own = {node.name: node for node in before.graph.nodes if node.name in known} if before else {}
    values: dict[fx.Node, Any] = {}
    alike: set[fx.Node] = set()
    symbolic = fake_mode(program.graph_module)
    with torch.no_grad():
        for node in program.graph.nodes:
            was = known.get(node.name)
            if _is_as_before(node, own, alike) and promised.get(node, sizes_of(was)) == sizes_of(was):
                values[node] = was
                alike.add(node)
                continue
            if _depends_on_data(node):
                values[node] = _as_promised(node, promised, mode)
            else:
                values[node] = _value(program, node, (values, promised), mode)
                _check(node, values[node], promised)
            if node.name in known and _is_alike(values[node], was):
                alike.add(node)
    for node, value in values.items():
        _update(node, value, symbolic)


def _is_as_before(node: fx.Node, own: Mapping[str, fx.Node], alike: set[fx.Node]) -> bool:
    """Return whether a node computes what it did before, from values of the same sizes."""
    if node.op != "call_function" or not alike.issuperset(node.all_input_nodes):
        return False
    return is_same_call(own.get(node.name), node)


def _is_alike(value: Any, other: Any) -> bool:
    """Return whether two values have the same sizes, strides and dtype; numbers must be equal."""
    if isinstance(value, (tuple, list)):
        pairs = isinstance(other, (tuple, list)) and len(value) == len(other)
        return pairs and all(map(_is_alike, value, other))
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return bool(type(value) is type(other) and value == other)
    return value is other or _layout(value) == _layout(other)


def _layout(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.stride(), value.storage_offset(), value.dtype, value.device


@per_program
def _plain_values(program: Program) -> tuple[FakeTensorMode, dict[str, Any]]:
    """Return every value of a program as a fake tensor of plain sizes, by name; none where it can't run on fake tensors."""
    mode, values = FakeTensorMode(allow_non_fake_inputs=True), dict[fx.Node, Any]()
    with torch.no_grad():
        for node in program.graph.nodes:
            if _depends_on_data(node):
                values[node] = _plain(node.meta.get("val"), mode)
                continue
            try:
                values[node] = _value(program, node, (values, {}), mode)
            except VerifyError:
                return mode, {}
    return mode, {node.name: value for node, value in values.items()}


def _depends_on_data(node: fx.Node) -> bool:
    """Return whether a size of the result or of an operand is known only when the program runs on data."""
    values = [node.meta.get("val"), *(source.meta.get("val") for source in node.all_input_nodes)]
    known = [value for value in values if value is not None]
    return node.op == "call_function" and any(map(free_unbacked_symbols, known))


def _as_promised(node: fx.Node, promised: Mapping[fx.Node, Any], mode: FakeTensorMode) -> Any:
    """Return a stand-in of the promised sizes: sizes that depend on data are checked where programs run, by `verify`."""
    before = node.meta.get("val")
    return _stand_in(before, promised[node], mode) if node in promised else _plain(before, mode)


def _stand_in(before: Any, sizes: Any, mode: FakeTensorMode) -> Any:
    if isinstance(before, (tuple, list)):
        return type(before)(_stand_in(one, part, mode) for one, part in zip(before, sizes, strict=True))
    if not isinstance(before, Tensor):
        return _plain(before, mode)
    with mode:
        return torch.empty(sizes, dtype=before.dtype, device=before.device)


def _value(
    program: Program,
    node: fx.Node,
    known: tuple[Mapping[fx.Node, Any], Mapping[fx.Node, Any]],
    mode: FakeTensorMode,
) -> Any:
    """Compute a node's value on fake tensors of plain sizes; inputs have their promised sizes."""
    values, promised = known
    if node.op == "output":
        return None
    if node.op == "get_attr":
        found = attribute(program.graph_module, str(node.target))
        return mode.from_tensor(found) if isinstance(found, Tensor) else found
    if node.op == "placeholder":
        return _as_promised(node, promised, mode)
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    try:
        with mode:
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except _UNKNOWABLE:
        return _plain(node.meta.get("val"), mode)
    except Exception as error:
        reason = str(error).splitlines()[0]
        message = f"{node.name} = {node.target}: shrunk shapes do not fit: {reason}"
        raise VerifyError(message, node.name) from error


def _plain(value: Any, mode: FakeTensorMode) -> Any:
    """Return a value with plain sizes."""
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(item, mode) for item in value)
    if isinstance(value, Tensor):
        with mode:
            return torch.empty([hint(size) for size in value.shape], dtype=value.dtype, device=value.device)
    return hint(value) if isinstance(value, torch.SymInt) else value


def _check(node: fx.Node, value: Any, promised: Mapping[fx.Node, Any]) -> None:
    sizes = sizes_of(value)
    if node in promised and sizes != promised[node]:
        message = f"{node.name} = {node.target}: its dims promise sizes {promised[node]}, it has {sizes}"
        raise VerifyError(message, node.name)


def _update(node: fx.Node, value: Any, mode: FakeTensorMode) -> None:
    """Write a node's new sizes into its value, symbolic where they were."""
    before = node.meta.get("val")
    if isinstance(value, (tuple, list)) and isinstance(before, (tuple, list)):
        node.meta["val"] = type(before)(_resized(b, v, mode) for b, v in zip(before, value, strict=True))
    elif isinstance(value, Tensor):
        node.meta["val"] = _resized(before, value, mode)
    elif before is None and node.op == "call_function":
        node.meta["val"] = value


def _resized(before: Any, value: Any, mode: FakeTensorMode) -> Any:
    if not isinstance(value, Tensor):
        return before
    if isinstance(before, Tensor):
        old = [hint(size) for size in before.shape]
        if len(old) != value.dim() or (old == list(value.shape) and _is_laid_out_as(before, value)):
            return before
        triples = zip(before.shape, old, value.shape, strict=True)
        sizes = [_scaled(size, was, new) for size, was, new in triples]
    else:
        sizes = list(value.shape)
    with mode:
        return _laid_out(sizes, value)


def _is_laid_out_as(before: Tensor, value: Tensor) -> bool:
    """Return whether two tensors of one size have the same strides, those of dims of one index aside."""
    triples = zip(before.stride(), value.stride(), value.shape, strict=True)
    return all(hint(one) == other for one, other, size in triples if size > 1)


def _laid_out(sizes: Sequence[Any], value: Tensor) -> Tensor:
    """Return an empty tensor of some sizes in the layout of a value of plain sizes: as it is expanded, permuted, or a part of a larger one.

    Exporters ask the layout whether a reshape is a view.
    """
    shape, strides = value.shape, value.stride()
    spread = [i for i in range(len(shape)) if strides[i] == 0 and shape[i] > 1]
    order = sorted(
        (i for i in range(len(shape)) if i not in spread), key=lambda i: (shape[i] == 1, strides[i])
    )
    inner = strides[order[0]] if order and shape[order[0]] > 1 else 1  # above 1: one column of a matrix
    held, step = dict[int, Any](), inner
    for i, outer in zip(order, [*order, None][1:], strict=True):
        whole = shape[i] if outer is None or shape[outer] == 1 else max(strides[outer] // step, shape[i])
        held[i] = sizes[i] if whole == shape[i] or not isinstance(sizes[i], int) else whole
        step *= whole
    outward = [held[i] for i in reversed(order)]
    made = torch.empty([*outward, inner], dtype=value.dtype, device=value.device)[..., 0]
    for place, i in enumerate(reversed(order)):
        made = made if held[i] is sizes[i] else made.narrow(place, 0, sizes[i])
    found = made.permute([list(reversed(order)).index(i) for i in sorted(order)])
    for i in spread:
        found = found.unsqueeze(i)
    return found.expand(sizes) if spread else found


def _scaled(size: Any, was: int, new: int) -> Any:
    if was == new:
        return size
    if isinstance(size, int):
        return new
    common = math.gcd(was, new)
    return size // (was // common) * (new // common)
