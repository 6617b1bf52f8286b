"""`python -m fxprune.tools.benchmarks.compile_time`: CPU time of fxprune beside torch's own export; docs/results/compile_time.md.

Each model runs in a process of its own, after a small one that pays for what a process computes once.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fxprune.tools.benchmarks.compile_time.measure import model_record, stack_record
from fxprune.tools.benchmarks.compile_time.models import TIMED
from fxprune.tools.benchmarks.compile_time.page import render_compile_time
from fxprune.tools.benchmarks.coverage_page import Record
from fxprune.tools.commands.console import progress

_RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"

LAYERS = (12, 48, 96, 192, 384)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the records lack, and write the page of all; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m fxprune.tools.benchmarks.compile_time", description=__doc__
    )
    parser.add_argument("names", nargs="*", help="models (default: all)")
    parser.add_argument(
        "--layers", type=int, nargs="*", default=LAYERS, help="numbers of layers of the stack"
    )
    parser.add_argument(
        "--records", type=Path, default=_RESULTS / "compile_time.jsonl", help="what is there is not run again"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=_RESULTS / "compile_time.md", help="the page to write"
    )
    options = parser.parse_args(arguments)
    known = _read(options.records)
    for name in options.names or TIMED:
        _add(known, {"name": name, "dynamic": True}, model_record, options.records)
    for layers in options.layers:
        for dynamic in (False, True):
            _add(known, {"layers": layers, "dynamic": dynamic}, stack_record, options.records)
    options.output.write_text(render_compile_time(known))
    progress().print(f"wrote {options.output}", markup=False)
    return 0


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _add(known: list[Record], key: Record, measure: Callable[[Record], Record], path: Path) -> None:
    """Measure in a process of its own, unless a record has this key, and append the record."""
    if any(key.items() <= record.items() for record in known):
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        record = pool.submit(measure, key).result()
    known.append(record)
    with path.open("a") as file:
        file.write(f"{json.dumps(record)}\n")
    progress().print(str(record), markup=False)


if __name__ == "__main__":
    sys.exit(main())
