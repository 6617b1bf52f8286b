"""`fxprune bench`: time several ONNX files in turns on inputs of the same sizes."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxprune.errors import ExportError, UsageError
from fxprune.ir import Point
from fxprune.runtimes import Settings, measure, open_session, runtime_of
from fxprune.runtimes.onnxruntime import file_axes, file_feeds, file_flops
from fxprune.runtimes.registry import describe_settings, runtimes_for
from fxprune.tools.commands import console
from fxprune.tools.reports import report
from fxprune.tools.reports.report import Grid

_POINTS: tuple[Point, ...] = (
    {"batch": 1, "length": 16},
    {"batch": 1, "length": 128},
    {"batch": 8, "length": 64},
)


def bench_command(options: argparse.Namespace) -> int:
    """Time ONNX files against the first of them."""
    given = settings(options)
    files = _files(options.files)
    stages = console.Stages()
    entries = []
    for point in _points(files):
        with stages.stage(f"measuring at {report.describe_point(point)}"):
            entries.append(_entry(files, point, given, options.seconds))
    if options.json:
        console.print_json({"format": "fxprune.bench/1", "session": asdict(given), "points": entries})
        return 0
    console.print_tables([_grid(entries, list(files), given)])
    return 0


def _files(given: list[str]) -> dict[str, Path]:
    for text in given:
        if not Path(text).is_file():
            raise UsageError(f"there is no file {text}")
    files = {text: Path(text) for text in given}
    for text, path in files.items():
        try:
            open_session(path)
        except ExportError as error:
            raise UsageError(f"{text} is no ONNX file that ONNX Runtime can open: {error}") from error
    return files


def settings(options: argparse.Namespace) -> Settings:
    """Return the settings that the options ask for; UsageError where they are not available, or not for ONNX files."""
    peepholes = getattr(options, "peepholes", True)  # a command that writes no files has no such option
    asked = Settings(options.threads, options.optimization, options.runtime, peepholes)
    row = runtime_of(asked)
    if row.suffix != ".onnx":
        others = ", ".join(runtimes_for(".onnx"))
        raise UsageError(
            f"{row.title} runs {row.suffix} files, and ONNX files are measured here, by: {others}"
        )
    return asked


def _points(files: dict[str, Path]) -> list[Point]:
    axes = dict.fromkeys(axis for path in files.values() for axis in file_axes(path))
    points = [{axis: point.get(axis, 1) for axis in axes} for point in _POINTS]
    return [dict(point) for point in dict.fromkeys(tuple(point.items()) for point in points)]


def _entry(files: dict[str, Path], point: Point, settings: Settings, seconds: float) -> dict[str, Any]:
    given = {name: file_feeds(path, point) for name, path in files.items()}
    timed = measure(files, given, settings, seconds)
    flops = {name: file_flops(path, given[name]) for name, path in files.items()}
    first = next(iter(files))
    measured = {
        name: {
            "ms": asdict(timed[name]),
            "speedup": timed[first].median / timed[name].median,
            "flops": flops[name],
            "flop_ratio": flops[first] / max(flops[name], 1),
        }
        for name in files
    }
    return {"point": dict(point), "files": measured}


def _grid(entries: list[dict[str, Any]], names: list[str], settings: Settings) -> Grid:
    rows = [
        (
            report.describe_point(entry["point"]),
            name,
            f"{measured['ms']['median']:.2f}",
            f"{measured['ms']['low']:.2f}–{measured['ms']['high']:.2f}",
            f"{measured['speedup']:.2f}×",
            f"{measured['flop_ratio']:.2f}×",
        )
        for entry in entries
        for name, measured in entry["files"].items()
    ]
    title = f"{describe_settings(settings)}; against {names[0]}"
    columns = ("at", "file", "median ms", "quartiles", "speedup", "fewer FLOPs")
    return Grid(title, columns, tuple(rows), numbers=4)
