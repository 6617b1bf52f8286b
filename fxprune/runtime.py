"""Run ONNX files in ONNX Runtime, and measure how long each takes and how much it computes."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.errors import ExportError, UsageError
from fxprune.lower import first_line
from fxprune.points import Feeds, Point

Shape = list[int]

LEVELS = ("disable", "basic", "extended", "all")

# A time-boxed measurement still runs this often, however slow the model is.
FEWEST_RUNS = 5
MOST_RUNS = 200


@dataclass(frozen=True, slots=True)
class Settings:
    """What a latency depends on besides the file: reported beside every number."""

    threads: int = 1
    optimization: str = "all"


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds that one run of one file takes: median, quartiles, and how many runs stand behind them."""

    median: float
    low: float
    high: float
    runs: int


def session(path: Path, settings: Settings = Settings()) -> Any:
    """Open an ONNX file in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures come as exceptions, not as lines on the terminal
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _level(settings.optimization)
    return _open(path, options)


def run(opened: Any, given: Feeds) -> list[np.ndarray[Any, Any]]:
    """Run a session on the inputs that the graph still has."""
    known = {entry.name for entry in opened.get_inputs()}
    try:
        return list(opened.run(None, {name: value for name, value in given.items() if name in known}))
    except Exception as error:
        raise ExportError(f"ONNX Runtime failed: {first_line(error)}") from error


def file_axes(path: Path) -> dict[str, int]:
    """Name the dynamic axes of an ONNX file, each of size 1; a nameless one is named after its place."""
    named = [_file_dims(entry) for entry in session(path).get_inputs()]
    return {dim: 1 for dims in named for dim in dims if isinstance(dim, str)}


def file_feeds(path: Path, point: Point, seed: int = 0) -> Feeds:
    """Make inputs for an ONNX file out of what it says about them.

    Integers are 0 or 1, which every embedding and every mask can take; floats are normal.
    """
    random = np.random.default_rng(seed)
    return {entry.name: _draw(random, entry, point) for entry in session(path).get_inputs()}


def measure(
    files: Mapping[str, Path],
    given: Mapping[str, Feeds],
    settings: Settings = Settings(),
    seconds: float = 2.0,
) -> dict[str, Timing]:
    """Time several files on their inputs, taking turns, for about `seconds` in all.

    Turns spread a slow moment of the machine over all files; the order is reversed every other round.
    """
    runs = {name: _runner(session(path, settings), given[name]) for name, path in files.items()}
    for call in runs.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for order in islice(cycle([tuple(runs), tuple(reversed(runs))]), MOST_RUNS):
        for name in order:
            times[name].append(runs[name]())
        if time.perf_counter() > end and len(times[name]) >= FEWEST_RUNS:
            break
    return {name: _timing(taken) for name, taken in times.items()}


def file_flops(path: Path, given: Feeds) -> int:
    """Count the multiplications and additions of the products and convolutions that one run really does.

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
        run(opened, given)
        events = json.loads(Path(opened.end_profiling()).read_text())
    return sum(_event_flops(event["args"]) for event in events if "op_name" in event.get("args", {}))


def _level(name: str) -> Any:
    import onnxruntime

    if name not in LEVELS:
        raise UsageError(f"no optimisation level {name!r} in ONNX Runtime; levels: {', '.join(LEVELS)}")
    suffix = "DISABLE_ALL" if name == "disable" else f"ENABLE_{name.upper()}"
    return getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{suffix}")


def _open(path: Path, options: Any) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime can't open {path}: {first_line(error)}") from error


def _file_dims(entry: Any) -> list[int | str]:
    places = ("batch", "length")
    return [
        dim if dim is not None else places[place] if place < 2 else f"{entry.name}_{place}"
        for place, dim in enumerate(entry.shape)
    ]


def _draw(random: np.random.Generator, entry: Any, point: Point) -> np.ndarray[Any, Any]:
    shape = [dim if isinstance(dim, int) else point.get(dim, 1) for dim in _file_dims(entry)]
    kind = entry.type.removeprefix("tensor(").removesuffix(")")
    if kind in {"float", "float16", "double"}:
        return random.standard_normal(shape).astype({"float": "float32", "double": "float64"}.get(kind, kind))
    if kind == "bool":
        return np.ones(shape, dtype=np.bool_)
    if kind.startswith(("int", "uint")):
        return random.integers(0, 2, shape).astype(kind)
    raise UsageError(f"the input {entry.name!r} is a {entry.type}, and inputs of that type can't be made up")


def _runner(opened: Any, given: Feeds) -> Callable[[], float]:
    run(opened, given)
    known = {entry.name for entry in opened.get_inputs()}
    ready = {name: value for name, value in given.items() if name in known}

    def call() -> float:
        start = time.perf_counter()
        opened.run(None, ready)
        return (time.perf_counter() - start) * 1000

    return call


def _timing(taken: list[float]) -> Timing:
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
    return Timing(median, low, high, len(taken))


def _event_flops(event: Mapping[str, Any]) -> int:
    count = _FLOPS.get(event["op_name"])
    if count is None:
        return 0
    reads = [next(iter(entry.values())) for entry in event["input_type_shape"] if entry]
    writes = [next(iter(entry.values())) for entry in event["output_type_shape"] if entry]
    return 2 * count(reads, writes)


def _size(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _gemm(reads: list[Shape], writes: list[Shape]) -> int:
    return _size(writes[0]) * (_size(reads[0]) // max(writes[0][0], 1))


def _attention(reads: list[Shape], _writes: list[Shape]) -> int:
    query, key, value = reads[:3]
    if len(query) != 4:
        return 0
    return _size(query[:3]) * key[2] * (query[3] + value[3])


_FLOPS: dict[str, Callable[[list[Shape], list[Shape]], int]] = {
    "MatMul": lambda reads, writes: _size(writes[0]) * reads[0][-1],
    "Gemm": _gemm,
    "Conv": lambda reads, writes: _size(writes[0]) * _size(reads[1][1:]),
    "ConvTranspose": lambda reads, _: _size(reads[0]) * _size(reads[1][1:]),
    "Attention": _attention,
}
