"""Adapter of OpenVINO: run ONNX files on the CPU."""

from pathlib import Path
from typing import Any

from fxprune.errors import ExportError
from fxprune.ir import Feeds
from fxprune.runtimes.base import Outputs, Prepared, Settings


def openvino_version() -> str:
    """Return the version of OpenVINO; ImportError where it is absent."""
    import openvino

    return str(openvino.__version__)


def prepare_openvino(path: Path, settings: Settings) -> Prepared:
    """Compile an ONNX file once, and return a function that runs it on given inputs; ExportError, with the reason, where it can't."""
    compiled = _compile(path, settings)
    request = compiled.create_infer_request()
    inputs = [min(port.names) for port in compiled.inputs]
    places = range(len(compiled.outputs))

    def call(given: Feeds) -> Outputs:
        # OpenVINO would run on the old contents of memory for an input that is not given.
        if missing := [name for name in inputs if name not in given]:
            raise ExportError(f"{path} has an input {missing[0]!r}, and given are only: {', '.join(given)}")
        ready = {name: given[name] for name in inputs}
        try:
            found = request.infer(ready, share_inputs=True)  # as ONNX Runtime does: no copy of the inputs
        except Exception as error:
            raise ExportError(f"OpenVINO failed: {_reason(error)}") from error
        return [found[place] for place in places]

    return call


def _compile(path: Path, settings: Settings) -> Any:
    import openvino

    asked = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": settings.threads,
        # Where the processor has bfloat16, OpenVINO computes in it by default, and outputs move by 1e-2.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        return openvino.Core().compile_model(str(path), "CPU", asked)
    except Exception as error:
        raise ExportError(f"OpenVINO can't open {path}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return the first informative line of an error; the lines before it are places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return [*told, *lines, type(error).__name__][0][:300]
