"""Measurement: CPU seconds, on one thread, of torch's own export and of each stage of fxprune."""

import cProfile
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fxprune.analysis import Analysis, analyze
from fxprune.errors import FxpruneError
from fxprune.export import export_onnx
from fxprune.export.onnx import ATTENTION_OPSET
from fxprune.frontend.capture import capture
from fxprune.ir import Program, Selection, describe_error, quiet
from fxprune.ir.torch_context import exporting
from fxprune.rewrite.apply import apply
from fxprune.rewrite.bypass import bypass
from fxprune.tools.benchmarks.compile_time.models import TIMED, layer_stack
from fxprune.tools.benchmarks.coverage_page import Record

_Inputs = dict[str, Tensor]


#: stages of fxprune, in order; what they do is in the page
STAGES = ("capture", "analyze", "regions", "half", "bypass", "file")

_RUNS = 3


def measured(model: nn.Module, inputs: _Inputs, dynamic: bool) -> Record:
    """Seconds of torch (`export`, `onnx`) and of fxprune's stages, torch's share in them included; `failed` says what raised.

    Each is measured in its own turn; torch's share comes first, and pays for what is computed once in a process.
    """
    shapes = _shapes(inputs) if dynamic else None
    seconds: dict[str, float] = {}
    record: dict[str, Any] = {"seconds": seconds, "failed": "", "dynamic": dynamic}
    try:
        with tempfile.TemporaryDirectory() as folder:
            _torch(model, inputs, shapes, Path(folder) / "torch.onnx", seconds)
            with _timed(seconds, "capture"):
                program = capture(model, kwargs=inputs, dynamic_shapes=shapes)
            _analysed(program, seconds)
            with _timed(seconds, "file"):
                export_onnx(program, Path(folder) / "own.onnx")
        record["nodes"] = len(program.graph.nodes)
    except FxpruneError as error:
        record["failed"] = describe_error(error)
    return record


def _shapes(inputs: _Inputs) -> dict[str, Any]:
    """The batch may vary, and the length of texts."""
    return {
        name: {0: Dim.AUTO} if value.is_floating_point() else dict.fromkeys(range(value.dim()), Dim.AUTO)
        for name, value in inputs.items()
    }


def _torch(model: nn.Module, inputs: _Inputs, shapes: Any, path: Path, seconds: dict[str, float]) -> None:
    """Measure torch's own share: the model's export, and the file of it as torch writes it; what it can't do is not in `seconds`."""
    with quiet(), exporting(model):
        try:
            with _timed(seconds, "export"):
                exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
            with _timed(seconds, "onnx"):
                _write(exported, path)
        except Exception:  # noqa: BLE001 - then fxprune has another way, and there is nothing to compare
            return


def _write(exported: ExportedProgram, path: Path) -> None:
    """Write a file in fxprune's opset, or in torch's default where the exporter fails in that; both tries count, as they do in fxprune."""
    try:
        made = torch.onnx.export(exported, dynamo=True, verbose=False, opset_version=ATTENTION_OPSET)
    except torch.onnx.OnnxExporterError:
        made = torch.onnx.export(exported, dynamo=True, verbose=False)
    assert made is not None
    made.save(path, external_data=False)


def _analysed(program: Program, seconds: dict[str, float]) -> None:
    with _timed(seconds, "analyze"):
        analysis = analyze(program)
    for stage, step in _steps(analysis).items():
        with _timed(seconds, stage):
            step()


def _steps(analysis: Analysis) -> dict[str, Callable[[], Any]]:
    """What follows the analysis, by stage."""
    program = analysis.program
    half = {axis.name: range(0, axis.size, 2) for axis in analysis.axes if axis.exact and axis.least == 1}

    def without_one() -> None:
        names = [region.name for region in analysis.regions if not region.why]
        bypass(program, names[:1])

    return {
        "regions": lambda: analysis.regions,
        "half": lambda: apply(program, Selection(half)),
        "bypass": without_one,
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    seconds[name] = time.process_time() - start


def grown(layers: int, dynamic: bool) -> Record:
    """CPU seconds and counted calls of the stages that read a graph, for a stack of so many layers.

    The seconds are the least of several runs: a full collection of Python's garbage, which walks over the whole process, falls into some.
    """
    model, inputs = layer_stack(layers)
    program = capture(model, kwargs=inputs, dynamic_shapes=_shapes(inputs) if dynamic else None)
    runs: list[dict[str, float]] = [{} for _ in range(_RUNS)]
    for run in runs:
        _analysed(program.replace(), run)
    seconds = {stage: min(run[stage] for run in runs) for stage in runs[0]}
    fresh = program.replace()
    calls = {"analyze": _calls(lambda: analyze(fresh))}
    calls |= {stage: _calls(step) for stage, step in _steps(analyze(fresh)).items()}
    return {"layers": layers, "dynamic": dynamic, "seconds": seconds, "calls": calls}


def _calls(step: Callable[[], object]) -> int:
    """The calls of functions that a step makes: a count that no other load on the machine changes."""
    profile = cProfile.Profile()
    profile.runcall(step)
    return sum(entry.callcount for entry in profile.getstats())


def model_record(key: Record) -> Record:
    """The record of a model, in this process; `key` has its `name`, and whether sizes are `dynamic`."""
    _warm_up()
    return {**key, **measured(*TIMED[key["name"]](), key["dynamic"])}


def stack_record(key: Record) -> Record:
    """The record of a stack, in this process; `key` has the number of `layers`, and whether sizes are `dynamic`."""
    _warm_up()
    return {**key, **grown(key["layers"], key["dynamic"])}


def _warm_up() -> None:
    """Run the stages once, so that imports and tables which a process fills once count for nobody."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured(*layer_stack(1), True)
