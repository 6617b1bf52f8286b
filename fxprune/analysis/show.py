"""Program text: one line per node, with the dims of its value; for people, and for tests that compare a graph before and after a rewrite.

    x: (batch, !8)
    up.weight: (ffn:32, !8)
    linear = linear(x, up.weight) -> (batch, ffn:32)
    return linear

`ffn:32` is the axis `ffn`, of 32 units (`0.ffn` short for `encoder.layer.0.ffn`); `experts:8?` are units among which is chosen (removed
ones are never chosen, any others are zeroed); `!8` is pinned, and stays whole; ` x ` is a product,
` + ` a concatenation; `batch` is a dynamic size of the inputs; and a number alone is a dim that no weight has.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx

from fxprune.analysis.axes import Axis, analyze
from fxprune.dims import Dim, find, is_pinned
from fxprune.dims.dim import dim_text, factors, segments
from fxprune.ir import Program, attribute, operands, storage_key
from fxprune.ir.example_inputs import dynamic_axis_names
from fxprune.rules import Flow, packet_of


def show(program: Program) -> str:
    """Return the graph as text: inputs, weights before their first reader, and calls with their operands; each with its dims."""
    analysis = analyze(program)
    labels = _axis_labels(analysis.axes) | _size_labels(program, analysis.flow)
    lines: list[str] = []
    read: dict[str, Any] = {}
    for node in program.graph.nodes:
        new = _unread(program, node, read)
        lines += [_tensor_line(tensor, read, _shape(analysis.flow, tensor, labels)) for tensor in new]
        if node.op != "get_attr":
            lines.append(_line(program, node, _shape(analysis.flow, node, labels)))
    return "\n".join(lines)


def _axis_labels(axes: Iterable[Axis]) -> dict[Dim, str]:
    """Return the text of each axis: its name (short where no other axis has the same short name) and its size."""
    short = {axis.leaf: _short(axis.name) for axis in axes}
    counts = Counter(short.values())
    names = {axis.leaf: short[axis.leaf] if counts[short[axis.leaf]] == 1 else axis.name for axis in axes}
    return {axis.leaf: f"{names[axis.leaf]}:{axis.size}{'?' * bool(axis.choices)}" for axis in axes}


def _short(name: str) -> str:
    """Return `0.qk` for `encoder.layer.0.attention.qk`: the numbers of layers and the last word; a name without such numbers as it is."""
    parts = name.split(".")
    last = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    numbers = [part for part in parts[:last] if part.isdigit()]
    return ".".join([*numbers, *parts[last:]]) if numbers else name


def _size_labels(program: Program, flow: Flow) -> dict[Dim, str]:
    """Return the text of each pinned atom that is a dynamic size of an input: the name of that size."""
    names = dynamic_axis_names(program) if program.free_dims() else {}
    nodes = {node.name: flow.dims[node] for node in program.placeholders() if node.name in names}
    found = {find(nodes[name][dim]): axis for name, dims in names.items() for dim, axis in dims.items()}
    return {leaf: axis for leaf, axis in found.items() if leaf.kind == "atom" and is_pinned(leaf)}


def _unread(program: Program, node: fx.Node, read: dict[str, Any]) -> list[fx.Node]:
    """Return the weights and buffers that a node is the first to read, and record their memory by name."""
    found = []
    for source in operands(node):
        value = attribute(program.graph_module, str(source.target)) if source.op == "get_attr" else None
        if isinstance(value, Tensor) and source.target not in read:
            read[str(source.target)] = storage_key(value)
            found.append(source)
    return found


def _tensor_line(node: fx.Node, read: Mapping[str, Any], shape: str) -> str:
    """Return the line of a weight or buffer; of a tied one, with the name that was read first."""
    name = str(node.target)
    first = next(other for other, key in read.items() if key == read[name])
    return f"{name}: {shape}" if first == name else f"{name} = {first} -> {shape}"


def _line(program: Program, node: fx.Node, shape: str) -> str:
    if node.op == "output":
        return f"return {_listed(program.outputs())}"
    if node.op == "placeholder":
        return f"{node.name}: {shape}" if shape else node.name
    return f"{node.name} = {_call(node)}" + (f" -> {shape}" if shape else "")


def _call(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return f"{_operand(node.args[0])}[{node.args[1]}]"
    named = [f"{name}={_operand(value)}" for name, value in node.kwargs.items()]
    return f"{_operator(node.target)}({', '.join([*map(_operand, node.args), *named])})"


def _operator(target: Any) -> str:
    """Return the name of an operator without its overload, and without a namespace where that is aten."""
    packet = packet_of(target)
    name = str(getattr(packet, "__name__", packet))
    space = getattr(target, "namespace", "aten")
    return name if space == "aten" else f"{space}.{name}"


def _operand(value: Any) -> str:
    """Return an operand by its name, or a literal."""
    if isinstance(value, fx.Node):
        return str(value.target) if value.op == "get_attr" else value.name
    if isinstance(value, (list, tuple)):
        return f"[{_listed(value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value).removeprefix("torch.")


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(_operand, values))


def _shape(flow: Flow, node: fx.Node, labels: Mapping[Dim, str]) -> str:
    """Return the dims of a node's value, or of several values; empty for a value that is no tensor."""
    return _value_text(node.meta.get("val"), flow.dims.get(node, ()), labels)


def _value_text(value: Any, dims: Any, labels: Mapping[Dim, str]) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_value_text(*pair, labels) for pair in zip(value, dims, strict=True))
    return f"({', '.join(_bare(dim, labels) for dim in dims)})" if isinstance(value, Tensor) else ""


_SINGLE = ("atom", "mirror", "order")


def _bare(dim: Dim, labels: Mapping[Dim, str]) -> str:
    """Return a dim in the notation of `dim_text`, without parentheses around the whole, and products of products and sums of sums flat."""
    dim = find(dim)
    if dim.kind in _SINGLE:
        return dim_text(dim, labels)
    joint, parts = (" x ", factors(dim)) if dim.kind == "product" else (" + ", segments(dim))
    texts = [_bare(part, labels) for part in parts]
    atoms = [find(part).kind in _SINGLE for part in parts]
    return joint.join(text if plain else f"({text})" for text, plain in zip(texts, atoms, strict=True))
