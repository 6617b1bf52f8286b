"""The adapter of ONNX Runtime's quantizer: an ONNX file in, one whose weights are 8-bit integers out.

The settings were chosen by measurement (docs/results/quantization.md). The quantizer's own choice of operators is not taken: it makes a
`QAttention` of every `Attention`, which since opset 23 is another operator, and ONNX Runtime can't open the file.
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
"""Products with a constant, and look-ups in a table, which hold nearly all weights. A dynamic convolution runs at a third of the speed."""

CARRIED = ("Relu", "Clip", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
"""Stay in integers between convolutions. Elsewhere a sum is a residual stream, whose outliers 8 bits can't hold: MiniLM loses 6 points."""

LARGE = 1_900_000_000
"""Bytes: a file holds 2 GB, so weights of more lie beside it."""


def quantizer_version() -> str:
    """The version of ONNX Runtime; ImportError where it or its quantizer can't be imported."""
    import onnxruntime.quantization

    return str(onnxruntime.__version__)


def quantize_dynamic(source: Path, target: Path, _batches: Iterable[Feeds]) -> None:
    """Weights become integers now; activations do in every run, by the range that they have there."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _prepared(source) as (prepared, large):
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=list(DYNAMIC),
            # With one scale a matrix MiniLM's outputs move twice as far, and are no sooner there.
            per_channel=True,
            # Unsigned weights take 1.6 times as long.
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )


def quantize_static(source: Path, target: Path, batches: Iterable[Feeds]) -> None:
    """Weights and the inputs of products become integers, by ranges that are seen on the batches."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with _prepared(source) as (prepared, large):
        quantize_static(
            prepared,
            target,
            _reader(prepared, batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_PRODUCTS, *CARRIED, "Gather"],
            nodes_to_quantize=_chosen(prepared),
            per_channel=True,
            # Signed activations take twice as long on x86, and move no less.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # The others want batches of one size.
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=large,
            # A product's result goes on in float32, where the ranges of MiniLM's need it.
            extra_options={
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            },
        )


def count_onnx_integers(path: Path) -> int:
    """How many of a file's constants are 8-bit integers, vectors and single numbers aside."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    kinds = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    return sum(each.data_type in kinds and len(each.dims) > 1 for each in graph.initializer)


@contextmanager
def _prepared(source: Path) -> Iterator[tuple[Path, bool]]:
    """The file as the quantizer wants it, with shapes inferred, and whether weights must lie beside a file.

    Symbolic shape inference stops at Attention of opset 23; ONNX's own knows it.
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
            _mend(model.graph)
            onnx.save(model, path)
            yield path, large
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime could not quantize {source}: {innermost_reason(error)}"
            ) from error


def _mend(graph: Any) -> None:
    """Name every node, for nodes are chosen by name; and let the quantizer turn over the matrix of a Gemm.

    It does so in place: the size that the file states would be wrong then, and so would another reader, as of a table that is tied.
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
    """The names of the nodes to quantize: products, look-ups, and what only passes on what convolutions computed."""
    import onnx

    chosen, carried = [], set[str]()
    graph = onnx.load(path, load_external_data=False).graph
    constants = {each.name for each in graph.initializer}
    for node in graph.node:
        reads = [name for name in node.input if name and name not in constants]
        inside = node.op_type in CARRIED and reads and carried.issuperset(reads)
        if node.op_type == "Conv" or inside:
            carried.update(node.output)
        if node.op_type in (*_PRODUCTS, "Gather") or inside:
            chosen.append(node.name)
    return chosen


def _reader(path: Path, batches: Iterable[Feeds]) -> object:
    """The batches as the quantizer reads them: one after another, then None; what the graph does not read is left out."""
    from onnxruntime.quantization import CalibrationDataReader

    known = {entry.name for entry in open_session(path).get_inputs()}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> Feeds | None:
            batch = next(self.batches, None)
            return batch if batch is None else {name: batch[name] for name in batch.keys() & known}

    return Reader()
