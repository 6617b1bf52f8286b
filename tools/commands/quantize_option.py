"""`--quantize`: write model.int8.onnx beside model.onnx, and its entry of the report."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxprune.errors import UsageError
from fxprune.integrations.quantization.quantize import QUANTIZERS, quantize
from fxprune.ir import Point, Program, feeds
from fxprune.runtimes import Settings, measure
from fxprune.tools.commands.bench import settings
from fxprune.tools.commands.budget_option import budgeted_pipeline, read_calibration_option
from fxprune.tools.commands.console import Stages
from fxprune.tools.inputs.loaded import Loaded
from fxprune.tools.reports import report

_SECONDS_A_POINT = 3.0
_FILE = "model.int8.onnx"
_ROWS = {name: row for name, row in QUANTIZERS.items() if row.suffix == ".onnx"}


def add_quantize_option(parser: argparse.ArgumentParser) -> None:
    """Add `--quantize`."""
    ways = "; ".join(f"{name}: {row.help}" for name, row in _ROWS.items())
    parser.add_argument("--quantize", choices=_ROWS, help=f"write {_FILE}, too. {ways}")


def check_quantize_option(options: argparse.Namespace) -> None:
    """Raise UsageError, before any work, where the quantizer needs calibration data and can't have them."""
    if not (options.quantize and QUANTIZERS[options.quantize].calibrated):
        return
    if not options.calibration:
        raise UsageError(
            f"--quantize {options.quantize} needs --calibration FILE: the ranges of activations are seen on data"
        )
    if options.tokens:
        raise UsageError(
            f"--quantize {options.quantize} can't be had with --tokens: calibration data have the old token ids;"
            " use --quantize dynamic"
        )


def write_quantized(
    options: argparse.Namespace,
    slim: Program,
    loaded: Loaded,
    latency: Sequence[Any],
    stages: Stages,
    folder: Path,
) -> dict[str, Any] | None:
    """Quantize model.onnx in the folder, and time both; return the report's entry, or None without the option."""
    if not options.quantize:
        return None
    points = [entry["point"] for entry in latency]
    before, after = folder / "model.onnx", folder / _FILE
    with stages.stage(f"writing and checking {_FILE}"):
        data = None if options.tokens else read_calibration_option(options, slim, loaded)
        for note in data.notes if data and not budgeted_pipeline(options).uses("data") else ():
            stages.note(note)  # where a pass used the data, they were told
        batches = data.batches if data else ()
        given = batches or [feeds(slim, point) for point in points]
        found = quantize(before, after, options.quantize, batches, given)
    files, chosen = {"before": before, "after": after}, settings(options)
    return {
        "how": options.quantize,
        "file": _FILE,
        "bytes": {"before": found.before_bytes, "after": found.bytes},
        "agreement": {name: asdict(row) for name, row in found.agreement.items()},
        "compared_on": "calibration data" if batches else "example inputs",
        "latency": [_timed(files, slim, point, chosen, stages) for point in points],
    }


def _timed(
    files: Mapping[str, Path], slim: Program, point: Point, chosen: Settings, stages: Stages
) -> dict[str, Any]:
    with stages.stage(f"measuring {_FILE} at {report.describe_point(point)}"):
        timed = measure(files, dict.fromkeys(files, feeds(slim, point)), chosen, _SECONDS_A_POINT)
    return report.times(point, timed["before"], timed["after"])
