"""Adapter of ONNX Runtime: run ONNX files, make inputs for them, and count their operations.

`fxprune.runtimes.registry` has the table of all runtimes, `fxprune.runtimes.timing` measures how long a run takes in each.
"""

import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.errors import ExportError, UsageError
from fxprune.ir import Feeds, Point, first_line
from fxprune.runtimes.base import DEFAULT, Outputs, Prepared, Settings

_Shape = list[int]

_NUMPY = {"float": "float32", "double": "float64"}
"""The names of types in numpy, where ONNX Runtime has others."""

LEVELS = ("disable", "basic", "extended", "all")
CPU = "CPUExecutionProvider"


def open_session(path: Path, settings: Settings = DEFAULT) -> Any:
    """Open an ONNX file in ONNX Runtime, on the CPU unless the settings name another provider."""
    return _open(path, _options(settings), _provider(settings))


def run_session(opened: Any, given: Feeds) -> Outputs:
    """Run a session on the inputs that the graph still has."""
    return _run(opened, _inputs(opened), given)


def prepare_onnxruntime(path: Path, settings: Settings) -> Prepared:
    """Open an ONNX file once, and return a function that runs it on given inputs; ExportError, with the reason, where it can't."""
    opened = open_session(path, settings)
    known = _inputs(opened)
    return lambda given: _run(opened, known, given)


def onnxruntime_version() -> str:
    """Return the version of ONNX Runtime; ImportError where it is absent."""
    import onnxruntime

    return str(onnxruntime.__version__)


def onnxruntime_providers() -> tuple[str, ...]:
    """Return the providers that this build of ONNX Runtime has, in its own order of preference."""
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def save_optimized(path: Path, settings: Settings, target: Path) -> None:
    """Write an ONNX file as ONNX Runtime runs it, after its optimisations; weights lie beside it, in `<name>.data`."""
    options = _options(settings)
    options.optimized_model_filepath = str(target)
    beside = "session.optimized_model_external_initializers_file_name"
    options.add_session_config_entry(beside, f"{target.name}.data")  # in one file they could exceed its 2 GB
    _open(path, options, _provider(settings))


def signature(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the inputs and outputs of an ONNX file, each with its name, dtype and shape.

    A dynamic axis is its name in the shape, or None where it has none.
    """
    opened = open_session(path)
    ends = {"inputs": opened.get_inputs(), "outputs": opened.get_outputs()}
    return {end: [_describe_io(entry) for entry in entries] for end, entries in ends.items()}


def _describe_io(entry: Any) -> dict[str, Any]:
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    return {"name": entry.name, "dtype": _NUMPY.get(kind, kind), "shape": list(entry.shape)}


def file_axes(path: Path) -> dict[str, int]:
    """Return the dynamic axes of an ONNX file by name, each of size 1; a nameless one is named after its place."""
    named = [_file_dims(entry) for entry in open_session(path).get_inputs()]
    return {dim: 1 for dims in named for dim in dims if isinstance(dim, str)}


def file_outputs(path: Path) -> list[str]:
    """Return the names of the outputs of an ONNX file."""
    return [entry.name for entry in open_session(path).get_outputs()]


def file_feeds(path: Path, point: Point, seed: int = 0) -> Feeds:
    """Make inputs for an ONNX file, by the types and shapes that it declares; UsageError for a type that can't be made.

    Integers are 0 or 1, which every embedding and every mask can take; floats are normal; booleans are true.
    """
    random = np.random.default_rng(seed)
    return {entry.name: _draw(random, entry, point) for entry in open_session(path).get_inputs()}


def file_flops(path: Path, given: Feeds) -> int:
    """Count the multiplications and additions of the products, convolutions and attention that one run does.

    Read from ONNX Runtime's profile, so the shapes are those of the run and no shape inference can be wrong.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # failures come as exceptions, not as lines on the terminal
        options.graph_optimization_level = _level("disable")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        opened = _open(path, options)
        run_session(opened, given)
        events = json.loads(Path(opened.end_profiling()).read_text())
    return sum(_event_flops(event["args"]) for event in events if "op_name" in event.get("args", {}))


def _options(settings: Settings) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures come as exceptions, not as lines on the terminal
    options.intra_op_num_threads = settings.threads
    # A pool that spins after its run takes the cores from the session whose turn is next: measured, three times slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _level(settings.optimization)
    return options


def _level(name: str) -> Any:
    import onnxruntime

    if name not in LEVELS:
        raise UsageError(f"no optimisation level {name!r} in ONNX Runtime; levels: {', '.join(LEVELS)}")
    suffix = "DISABLE_ALL" if name == "disable" else f"ENABLE_{name.upper()}"
    return getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{suffix}")


def _provider(settings: Settings) -> str:
    return settings.runtime.partition(":")[2] or CPU


def _open(path: Path, options: Any, provider: str = CPU) -> Any:
    import onnxruntime

    try:
        opened = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:
        raise ExportError(f"ONNX Runtime can't open {path}: {first_line(error)}") from error
    # A provider whose libraries are missing is replaced by the CPU without an error: its latency would be the CPU's.
    if opened.get_providers()[0] != provider:
        raise UsageError(
            f"ONNX Runtime could not start {provider} and fell back to the CPU: install what {provider} needs,"
            f" or choose another; available: {', '.join(onnxruntime_providers())}"
        )
    return opened


def _inputs(opened: Any) -> frozenset[str]:
    return frozenset(entry.name for entry in opened.get_inputs())


def _run(opened: Any, known: Collection[str], given: Feeds) -> Outputs:
    try:
        return list(opened.run(None, {name: value for name, value in given.items() if name in known}))
    except Exception as error:
        raise ExportError(f"ONNX Runtime failed: {first_line(error)}") from error


def _file_dims(entry: Any) -> list[int | str]:
    names = ["batch", "length", *(f"{entry.name}_{place}" for place in range(2, len(entry.shape)))]
    return [name if dim is None else dim for name, dim in zip(names, entry.shape, strict=False)]


def _draw(random: np.random.Generator, entry: Any, point: Point) -> np.ndarray[Any, Any]:
    shape = [dim if isinstance(dim, int) else point.get(dim, 1) for dim in _file_dims(entry)]
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    if kind in {"float", "float16", "double"}:
        return random.standard_normal(shape).astype(_NUMPY.get(kind, kind))
    if kind == "bool":
        return np.ones(shape, dtype=np.bool_)
    if kind.startswith(("int", "uint")):
        return random.integers(0, 2, shape).astype(kind)
    raise UsageError(f"the input {entry.name!r} is a {entry.type}, and inputs of that type can't be made up")


def _event_flops(event: Mapping[str, Any]) -> int:
    count = _FLOPS.get(event["op_name"])
    if count is None:
        return 0
    reads = [next(iter(entry.values())) for entry in event["input_type_shape"] if entry]
    writes = [next(iter(entry.values())) for entry in event["output_type_shape"] if entry]
    return 2 * count(reads, writes)


def _size(shape: _Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _gemm(reads: list[_Shape], writes: list[_Shape]) -> int:
    return _size(writes[0]) * (_size(reads[0]) // max(writes[0][0], 1))


def _attention(reads: list[_Shape], _writes: list[_Shape]) -> int:
    query, key, value = reads[:3]
    if len(query) != 4:
        return 0
    return _size(query[:3]) * key[2] * (query[3] + value[3])


_FLOPS: dict[str, Callable[[list[_Shape], list[_Shape]], int]] = {
    "MatMul": lambda reads, writes: _size(writes[0]) * reads[0][-1],
    "Gemm": _gemm,
    "Conv": lambda reads, writes: _size(writes[0]) * _size(reads[1][1:]),
    "ConvTranspose": lambda reads, _: _size(reads[0]) * _size(reads[1][1:]),
    "Attention": _attention,
}
