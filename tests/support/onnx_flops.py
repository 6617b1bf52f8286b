"""FLOPs of an ONNX file, counted from its graph by shape inference: nothing is run, and nothing of fxprune is used.

The convention is that of `fxprune.cost.count`: a multiply-add counts 2, and only contractions count (products, convolutions, attention).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import onnx

Shape = list[int]


def counted_flops(path: Path, inputs: Mapping[str, Sequence[int]]) -> int:
    """The operations of one run at these input shapes; ValueError where inference leaves a shape open."""
    model = onnx.load(path)
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
            dim.dim_value = size
    del model.graph.value_info[:]  # the exporter's symbols: inference puts numbers in their place
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = _shapes(inferred)
    return sum(_count(node, shapes) for node in inferred.node)


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = [dim.dim_value for dim in dims]
    return shapes


def _count(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    if node.op_type not in ("MatMul", "Gemm", "Conv", "Attention"):
        return 0
    reads = [shapes.get(name) for name in node.input if name]
    result = shapes.get(node.output[0])
    if result is None or reads[0] is None or reads[1] is None:
        raise ValueError(f"shape inference leaves {node.op_type} {node.name} open: {reads} -> {result}")
    first, second = reads[0], reads[1]
    if node.op_type == "MatMul":
        return 2 * prod(result) * first[-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * prod(result) * first[0 if transposed else 1]
    if node.op_type == "Conv":
        return 2 * prod(result) * prod(second[1:])  # a weight is [out, in of its group, *kernel]
    value = reads[2]
    assert value is not None
    return 2 * prod(first[:-1]) * second[-2] * (first[-1] + value[-1])
