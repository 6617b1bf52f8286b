"""`python -m fxprune.tools.benchmarks.scale`: peak memory and time of pruning checkpoints from disk; docs/results/scale.md.

Each run is a process of its own. Checkpoints have random weights and are made on disk first (`--folder`; 4.4 GB for 1.1 billion
parameters).
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fxprune.tools.benchmarks.scale.checkpoints import SHAPES, made_checkpoint
from fxprune.tools.benchmarks.scale.measure import predicted_run, pruned
from fxprune.tools.benchmarks.scale.page import render_scale
from fxprune.tools.benchmarks.speed import read_figures
from fxprune.tools.commands.console import progress
from fxprune.tools.reports import report

_RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"

#: shape: (calibration rows, tokens of a row)
CALIBRATION_ROWS = {name: (64, 128) if name.endswith("B") else (16, 128) for name in SHAPES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the shapes that are named, and write the page of all figures; 0."""
    parser = argparse.ArgumentParser(prog="python -m fxprune.tools.benchmarks.scale", description=__doc__)
    add = parser.add_argument
    add("shapes", nargs="*", help=f"of {', '.join(SHAPES)}")
    add("--folder", type=Path, default=Path("out/checkpoints"), help="where checkpoints are made")
    add(
        "--predict",
        action="store_true",
        help="capture and plan on the meta device, and say what the run would take",
    )
    add("--memory", default="6GB", help="what a run may use (6GB)")
    add("--pipeline", default="slim(params=0.8)", help="what is run (slim(params=0.8))")
    add("--records", type=Path, default=_RESULTS / "scale.jsonl", help="where figures are kept")
    add("-o", "--output", type=Path, default=_RESULTS / "scale.md", help="the page to write")
    options = parser.parse_args(arguments)
    unknown = set(options.shapes) - SHAPES.keys()
    if unknown:
        parser.error(f"no shape {min(unknown)!r}: {', '.join(SHAPES)}")
    spawn = multiprocessing.get_context("spawn")
    for name in options.shapes:
        if options.predict:
            with ProcessPoolExecutor(1, spawn) as pool:
                found = pool.submit(predicted_run, name, CALIBRATION_ROWS[name]).result()
        else:
            found = _run(name, options)
        record = {
            "shape": name,
            "rows": CALIBRATION_ROWS[name],
            "memory": options.memory,
            "pipeline": "" if options.predict else options.pipeline,
        }
        with options.records.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(record | found | {'machine': report.machine()})}\n")
        progress().print(str(record | found), markup=False)
    options.output.write_text(render_scale(read_figures(options.records)), encoding="utf-8")
    progress().print(f"wrote {options.output}", markup=False)
    return 0


def _run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make the checkpoint of a shape where it is missing, and prune it; each in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        made = pool.submit(made_checkpoint, name, options.folder).result()
    with ProcessPoolExecutor(1, spawn) as pool:
        data = (*CALIBRATION_ROWS[name], SHAPES[name].tokens)
        return pool.submit(pruned, made, options.pipeline, data, options.memory).result()


if __name__ == "__main__":
    sys.exit(main())
