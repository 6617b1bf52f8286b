"""ONNX clean-up, between torch's exporter and the file: drop debugging metadata, name outputs, mend what RotaryEmbedding and GRU lack."""

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fxprune.ir.naming import free_name


def drop_traces(model: ir.Model) -> None:
    """Drop the exporter's debugging metadata: source lines of this machine, the signature in full."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        for key in ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node"):
            node.metadata_props.pop(key, None)


def name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Name the outputs; what has one of these names gives way, but for an input: beside an input `x`, the output `x` becomes `x_out`."""
    inputs = {value.name for value in model.graph.inputs}
    taken = {str(value.name) for value in _all_values(model)} | set(names)
    named = [name if name not in inputs else free_name(f"{name}_out", taken) for name in names]
    for value in _all_values(model):
        if value.name in named:
            value.name = free_name(f"{value.name}_inner", taken)
            taken.add(value.name)
    for value, name in zip(model.graph.outputs, named, strict=True):
        value.name = name


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the values of a model: inputs, initializers and what the nodes compute, in the graphs within nodes, too."""
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.initializers.values())
        yield from (value for node in graph for value in node.outputs)


def reset_after_product(model: ir.Model) -> None:
    """Mark each GRU as torch's: its reset gate scales the product with the hidden state, not the state (onnxscript before 0.7.2)."""
    for node in model.graph.all_nodes():
        if node.op_type == "GRU" and not node.domain:
            node.attributes.add(ir.AttrInt64("linear_before_reset", 1))


def spread_rotary_caches(model: ir.Model) -> None:
    """Repeat the angles of RotaryEmbedding for every row of the batch.

    Without position ids the operator requires cos and sin as [batch, length, angles] (onnx.ai, RotaryEmbedding-23); onnxscript's fusion
    keeps the values that a model computes for one row, [1, length, angles], and ONNX Runtime rejects them at any larger batch.
    """
    spread: dict[tuple[str, str, str], ir.Value] = {}
    for node in [n for n in model.graph if n.op_type == "RotaryEmbedding" and not n.domain]:
        for place in (1, 2) if len(node.inputs) == 3 else ():
            rows, angles = node.inputs[0], node.inputs[place]
            if rows is None or angles is None or not _is_one_row(angles) or _is_one_row(rows):
                continue
            key = (*_computed(angles), str(rows.shape and rows.shape[0]))
            if key not in spread:
                spread[key] = _spread(model, node, rows, angles)
            node.replace_input_with(place, spread[key])
    if spread:
        RemoveUnusedNodesPass()(model)


def _is_one_row(value: ir.Value) -> bool:
    """Whether a value has one row; the fusion leaves the shape of a cosine or sine unknown, so that of its input is used."""
    made, shape = value.producer(), value.shape
    if shape is None and made is not None and made.op_type in ("Cos", "Sin") and made.inputs[0] is not None:
        shape = made.inputs[0].shape
    return shape is not None and len(shape) > 0 and shape[0] == 1


def _computed(value: ir.Value) -> tuple[str, str]:
    """Return a key of a value: cosines of the same angles have the same key, whichever layer uses them."""
    made = value.producer()
    if made is None or made.op_type not in ("Cos", "Sin") or made.inputs[0] is None:
        return "", str(value.name)
    return made.op_type, str(made.inputs[0].name)


def _spread(model: ir.Model, before: ir.Node, rows: ir.Value, angles: ir.Value) -> ir.Value:
    """Insert Expand(angles, [rows of the batch, 1, 1]) before a node, and return its value."""
    ones = ir.Value(name=f"{angles.name}_ones", const_value=ir.tensor([1, 1], dtype=ir.DataType.INT64))
    ones.dtype, ones.shape = ir.DataType.INT64, ir.Shape([2])
    model.graph.initializers.setdefault(str(ones.name), ones)
    batch = _node("Shape", [rows], f"{angles.name}_batch", {"start": 0, "end": 1})
    sizes = [batch.outputs[0], model.graph.initializers[str(ones.name)]]
    shape = _node("Concat", sizes, f"{angles.name}_shape", {"axis": 0})
    wide = _node("Expand", [angles, shape.outputs[0]], f"{angles.name}_spread", {})
    model.graph.insert_before(before, [batch, shape, wide])
    return wide.outputs[0]


def _node(kind: str, inputs: list[Any], name: str, attributes: dict[str, Any]) -> ir.Node:
    made = [ir.AttrInt64(key, value) for key, value in attributes.items()]
    return ir.Node("", kind, inputs, made, outputs=[ir.Value(name=name)], name=f"node_{name}")
