"""`python -m fxprune.tools.benchmarks.quantization`: size, speed, agreement and task metric of MiniLM pruned, quantized, and both.

Every figure goes into a JSON Lines file (`--out`), and the table of docs/results/quantization.md is written from that file (`--page`).
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config as inductor
from torch.utils import _pytree as pytree

from fxprune.calibration import check_calibration
from fxprune.export import export_onnx, save_pt2
from fxprune.files import file_bytes
from fxprune.integrations.quantization.quantize import QUANTIZERS, Quantized, quantize
from fxprune.ir import Feeds, Program, feeds, point_with, quiet
from fxprune.passes import parse_pipeline
from fxprune.runtimes import Settings
from fxprune.runtimes.base import Prepared
from fxprune.runtimes.registry import prepare
from fxprune.runtimes.timing import turns
from fxprune.tools.benchmarks.subjects import subject
from fxprune.tools.reports import report
from fxprune.tools.reports.report import Grid

PIPELINE = "heads(ratio=0.25), ffn(ratio=0.5), fold"
_POINTS = ({"batch": 1, "length": 128}, {"batch": 8, "length": 64})
_ROWS, HELD = 256, 0.5  # number of sentences, and the share of them that is held out for comparison
_SECONDS = 20.0  # for each point, all files together


class _Bench:
    """Bench of MiniLM in all its forms, each a file."""

    def __init__(self, out: Path, threads: int) -> None:
        self.out, self.settings = out, Settings(threads)
        self.subject = subject("minilm")
        self.folder = Path(tempfile.mkdtemp(prefix="fxprune-quantized-"))
        original = self.subject.load().capture(())
        self.programs = {"original": original, "pruned": parse_pipeline(PIPELINE).run(original).program}
        data = check_calibration(original, self.subject.calibration(_ROWS))
        self.fit, self.held = data.split(HELD, original)
        self.rows: dict[str, dict[str, Any]] = {}
        self.calls: dict[str, Prepared] = {}

    def run(self) -> None:
        """Write and evaluate every form, then time all of them in turns."""
        for name, program in self.programs.items():
            file = export_onnx(program, self.folder / f"{name}.onnx").path
            self._row(name, file, None)
            for how in QUANTIZERS:
                self._quantized(name, program, how)
        self._compiled("pruned, torch.compile", save_pt2(self.programs["pruned"], self.folder / "pruned.pt2"))
        self._compiled("pruned, pt2e, torch.compile", self.folder / "pruned.pt2e.pt2")
        self._time()
        self.note("machine", **report.machine())
        for name, row in self.rows.items():
            self.note("row", name=name, threads=self.settings.threads, **row)

    def note(self, kind: str, **figures: Any) -> None:
        """Append one line of results to the file, and print it to standard error."""
        text = json.dumps({"kind": kind, **figures})
        print(text, file=sys.stderr, flush=True)
        with self.out.open("a", encoding="utf-8") as lines:
            lines.write(text + "\n")

    def _quantized(self, name: str, program: Program, how: str) -> None:
        row = QUANTIZERS[how]
        file = self.folder / f"{name}.{how}{row.suffix}"
        data = self.fit.batches if row.calibrated else ()
        found = quantize(program, file, how, data, self.held.batches)
        self._row(f"{name}, {how}", file, found, row.runtime)

    def _row(self, name: str, file: Path, found: Quantized | None, runtime: str = "onnxruntime") -> None:
        call = prepare(file, Settings(self.settings.threads, runtime=runtime))
        agreement = asdict(found.worst) if found else None
        metric = self.subject.metric(lambda batch: tuple(map(torch.from_numpy, call(_arrays(batch)))))
        self.calls[name] = call
        self.rows[name] = {"bytes": file_bytes(file), "metric": metric, "agreement": agreement}
        print(name, self.rows[name], file=sys.stderr, flush=True)

    def _compiled(self, name: str, file: Path) -> None:
        """Add a .pt2 file compiled by Inductor; its metric is the uncompiled form's, since compiling for each length would take hours."""
        plain = name.removesuffix(", torch.compile")
        self.rows[name] = {**self.rows[plain], "bytes": file_bytes(file)}
        with quiet():
            module = torch.export.load(file).module(check_guards=False)
        inductor.freezing = True  # as an option of torch.compile it acts too late for integer products
        fast = torch.compile(module, dynamic=False)

        def call(given: Feeds) -> Any:
            torch.set_num_threads(self.settings.threads)
            with torch.no_grad():
                results = fast(**{key: torch.from_numpy(value) for key, value in given.items()})
            return [leaf.numpy() for leaf in pytree.tree_leaves(results)]

        self.calls[name] = call

    def _time(self) -> None:
        program = self.programs["original"]
        for point in _POINTS:
            given = feeds(program, point_with(program, **point))
            for call in self.calls.values():
                call(given)
            print("timing", point, file=sys.stderr, flush=True)
            timed = turns(self.calls, dict.fromkeys(self.calls, given), _SECONDS)
            for name, timing in timed.items():
                speedup = timed["original"].median / timing.median
                measured = {"point": point, "ms": timing.median, "runs": timing.runs, "speedup": speedup}
                self.rows[name].setdefault("latency", []).append(measured)


def _arrays(batch: Mapping[str, torch.Tensor]) -> Feeds:
    return {name: value.numpy() for name, value in batch.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or write the table from the figures of earlier runs."""
    parser = argparse.ArgumentParser(
        prog="python -m fxprune.tools.benchmarks.quantization", description=__doc__
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/quantization.jsonl"), help="where figures are kept")
    add("--threads", type=int, default=1, help="of the runtimes (1)")
    add("--note", default="", help="a sentence about the run, for the page")
    add("--page", type=Path, help="write the table into the page from the figures, and measure nothing")
    options = parser.parse_args(arguments)
    if options.page:
        entries = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
        text = render_quantization(options.page.read_text(encoding="utf-8"), entries, options.note)
        options.page.write_text(text, encoding="utf-8")
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    _Bench(options.out, options.threads).run()


def render_quantization(text: str, entries: Sequence[Mapping[str, Any]], note: str) -> str:
    """The page `text` with a new table between `<!-- table -->` and `<!-- /table -->`."""
    where = report.where({"machine": next(entry for entry in entries if entry["kind"] == "machine")})
    made = "\n\n".join([report.markdown_table(_grid(entries)), *([note] if note else []), where])
    place = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)
    return place.sub(lambda found: f"{found[1]}{made}\n{found[2]}", text)


def _grid(entries: Sequence[Mapping[str, Any]]) -> Grid:
    """The table: a row for each form of the model."""
    rows = [entry for entry in entries if entry["kind"] == "row"]
    points = [report.describe_point(each["point"]) for each in rows[0]["latency"]]
    cells = [
        (
            row["name"],
            f"{row['bytes'] / 1e6:.1f} MB",
            *(f"{each['speedup']:.2f}×" for each in row["latency"]),
            f"{row['agreement']['relative']:.2f}" if row["agreement"] else "–",
            f"{row['agreement']['cosine']:.4f}" if row["agreement"] else "–",
            f"{100 * row['metric']:.2f}",
        )
        for row in rows
    ]
    columns = ("form", "file", *points, "largest difference", "cosine", "Spearman × 100")
    return Grid("", columns, tuple(cells), len(columns) - 1)


if __name__ == "__main__":
    main()
