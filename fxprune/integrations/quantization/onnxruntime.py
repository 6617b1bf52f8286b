"""Adapter of ONNX Runtime's quantizer: reads an ONNX file, and writes one whose weights are 8-bit integers.

The settings were chosen by measurement (docs/results/quantization.md). The quantizer's default operators are not used: they include
`Attention`, which becomes `QAttention`; since opset 23 it is another operator, and ONNX Runtime can't open the file.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxprune.errors import ExportError
from fxprune.ir import Feeds, innermost_reason, quiet
from fxprune.runtimes import open_session

_PRODUCTS = ("MatMul", "Gemm", "Conv")
DYNAMIC = ("MatMul", "Gemm", "Gather")
"""Products with a constant, and table look-ups, which hold nearly all weights. A dynamic convolution runs at a third of the speed."""

PASS_THROUGH = ("Relu", "Clip", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
"""Kept in integers between convolutions. Elsewhere a sum is a residual stream, whose outliers 8 bits can't hold: MiniLM loses 6 points."""

LARGE = 1_900_000_000
"""Bytes above which weights are stored in a file beside the ONNX file, which holds at most 2 GB."""


def quantizer_version() -> str:
    """Return the version of ONNX Runtime; ImportError where it or its quantizer can't be imported."""
    import onnxruntime.quantization

    return str(onnxruntime.__version__)


def quantize_dynamic(source: Path, target: Path, _batches: Iterable[Feeds]) -> None:
    """Quantize weights now, and activations in every run, by the range that they have there; ExportError where it fails."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _prepared(source) as (prepared, large):
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=list(DYNAMIC),
            # With one scale per matrix, MiniLM's outputs differ twice as much, and runs are no faster.
            per_channel=True,
            # Unsigned weights take 1.6 times as long.
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )


def quantize_static(source: Path, target: Path, batches: Iterable[Feeds]) -> None:
    """Quantize weights and the inputs of products, by ranges observed on the batches; ExportError where it fails."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with _prepared(source) as (prepared, large):
        quantize_static(
            prepared,
            target,
            _reader(prepared, batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_PRODUCTS, *PASS_THROUGH, "Gather"],
            nodes_to_quantize=_chosen(prepared),
            per_channel=True,
            # Signed activations take twice as long on x86, and outputs differ no less.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # The other methods require batches of one size.
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=large,
            # Results of products stay in float32, which the ranges of MiniLM's require.
            extra_options={
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )


def count_onnx_integers(path: Path) -> int:
    """Return how many of a file's constants are 8-bit integers, vectors and scalars not counted."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    kinds = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    return sum(each.data_type in kinds and len(each.dims) > 1 for each in graph.initializer)


@contextmanager
def _prepared(source: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the file prepared for the quantizer, with shapes inferred, and whether weights must be stored beside the file.

    Symbolic shape inference stops at Attention of opset 23, so ONNX's own is used. Errors, those of the block too, become ExportErrors.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    large = sum(file.stat().st_size for file in source.parent.glob(f"{source.name}*")) > LARGE
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(
                source,
                path,
                skip_symbolic_shape=True,
                save_as_external_data=large,
                all_tensors_to_one_file=True,
            )
            model = onnx.load(path, load_external_data=False)
            _prepare_graph(model.graph)
            onnx.save(model, path)
            yield path, large
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime could not quantize {source}: {innermost_reason(error)}"
            ) from error


def _prepare_graph(graph: Any) -> None:
    """Name every node, since nodes are chosen by name, and make it safe for the quantizer to transpose the matrix of a Gemm in place.

    For that, the stated sizes of constants are dropped, and a matrix with other readers (such as a tied table) is copied.
    """
    constants = {each.name: each for each in graph.initializer}
    for place in reversed(range(len(graph.value_info))):
        if graph.value_info[place].name in constants:
            del graph.value_info[place]
    readers = Counter(name for node in graph.node for name in node.input)
    for place, node in enumerate(graph.node):
        node.name = node.name or f"node_{place}"
        if node.op_type == "Gemm" and node.input[1] in constants and readers[node.input[1]] > 1:
            own = graph.initializer.add()
            own.CopyFrom(constants[node.input[1]])
            own.name = node.input[1] = f"{node.input[1]}_of_{node.name}"


def _chosen(path: Path) -> list[str]:
    """Return the names of the nodes to quantize: products, look-ups, and CARRIED operators that only read results of convolutions."""
    import onnx

    chosen, carried = [], set[str]()
    graph = onnx.load(path, load_external_data=False).graph
    constants = {each.name for each in graph.initializer}
    for node in graph.node:
        reads = [name for name in node.input if name and name not in constants]
        inside = node.op_type in PASS_THROUGH and reads and carried.issuperset(reads)
        if node.op_type == "Conv" or inside:
            carried.update(node.output)
        if node.op_type in (*_PRODUCTS, "Gather") or inside:
            chosen.append(node.name)
    return chosen


def _reader(path: Path, batches: Iterable[Feeds]) -> object:
    """Return the batches as a CalibrationDataReader: one after another, then None, without inputs that the graph does not read."""
    from onnxruntime.quantization import CalibrationDataReader

    known = {entry.name for entry in open_session(path).get_inputs()}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> Feeds | None:
            batch = next(self.batches, None)
            return batch if batch is None else {name: batch[name] for name in batch.keys() & known}

    return Reader()
