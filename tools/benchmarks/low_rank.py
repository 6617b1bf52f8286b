"""`python -m fxprune.tools.benchmarks.low_rank`: compare plain and whitened factors with `slim` at equal measured speed, without labels.

Every figure goes into a JSON Lines file as soon as it is known (`--out`), and docs/results/ranks.md is written from that file (`--page`).
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxprune.passes import Lowrank, Slim
from fxprune.pipeline import Context, Pass, Pipeline
from fxprune.tools.benchmarks.speed import Bench, read_figures
from fxprune.tools.reports import report
from fxprune.tools.reports.report import Grid

MEMORY = 4096  # megabytes: room for all second moments of SmolLM2 in one pass over the data
SPEEDS = {"minilm": (1.5, 2.0), "smollm2": (1.25,)}

#: method: options of lowrank; each method adds one step to the one before
LOWRANK: dict[str, dict[str, Any]] = {
    "SVD": {"whiten": False, "update": "none"},
    "whitened SVD": {"update": "none"},
    "whitened SVD, second factors re-fitted": {"update": "second"},
    "whitened SVD, all matrices re-fitted": {"update": "all"},
}

#: method: passes, each with its share of the speedup (of its logarithm)
MIXED: dict[str, tuple[tuple[type[Pass], float], ...]] = {
    "slim": ((Slim, 1.0),),
    "slim, then factors": ((Slim, 0.5), (Lowrank, 0.5)),
    "factors, then slim": ((Lowrank, 0.5), (Slim, 0.5)),
}
_METHODS = (*LOWRANK, *MIXED)

_TITLES = {
    "minilm": ("all-MiniLM-L6-v2, STS-benchmark", "Spearman × 100", 100.0),
    "smollm2": ("SmolLM2-135M, WikiText-2", "perplexity", 1.0),
}


class LowRankBench(Bench):
    """Speed bench of one subject whose matrices become low-rank factors."""

    def run(self, speed: float, method: str) -> None:
        """Run one method at one speed, and record its figures."""
        start, program, matrices = time.perf_counter(), self.program, list[Mapping[str, Any]]()
        sought = list[Mapping[str, Any]]()
        for kind, share in MIXED.get(method, ((Lowrank, 1.0),)):
            own = {"memory": MEMORY, **LOWRANK.get(method, {})} if kind is Lowrank else {}
            each = kind(latency=speed**-share, **self._options(), **own)  # type: ignore[call-arg]
            result = Pipeline((each,)).run(program, Context(data=self.data))
            program, details = result.program, result.steps[0].details
            matrices += details.get("ranks", [])
            sought.append({key: details[key] for key in ("target", "factor", "share", "trials")})
        seconds = time.perf_counter() - start
        self._row(speed, method, program)
        self.note("details", speed=speed, method=method, seconds=seconds, ranks=matrices, sought=sought,
                  parameters=program.parameter_count(), before=self.program.parameter_count())  # fmt: skip


def render_low_rank(entries: Sequence[Mapping[str, Any]], note: str) -> str:
    """The Markdown page docs/results/ranks.md; `note` is a sentence about the run."""
    parts = [_HEAD, *([note] if note else [])]
    for name in dict.fromkeys(str(entry["subject"]) for entry in entries):
        parts += _subject(name, [entry for entry in entries if entry["subject"] == name])
    machine = next((entry for entry in entries if entry["kind"] == "machine"), None)
    if machine:
        parts.append(report.where({"machine": machine}))
    return "\n\n".join(parts) + "\n"


_HEAD = """# Factors instead of matrices, without training

Each model becomes faster by a factor that is asked for and measured (ONNX Runtime, one thread), and is judged on a task that nothing was
fitted on; `lowrank` gets unlabelled inputs only, as `slim` does. A matrix becomes two where that is measured to be faster; ranks go where
a microsecond costs least. The figures lie in `docs/results/ranks.jsonl` and come from

```
python -m fxprune.tools.benchmarks.low_rank minilm smollm2 --out docs/results/ranks.jsonl
```"""


def _subject(name: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    title, metric, scale = _TITLES[name]
    dense = next(entry["metric"] for entry in entries if entry["kind"] == "dense")
    details = {(e["speed"], e["method"]): e for e in entries if e["kind"] == "details"}
    rows = [
        (
            f"{entry['speed']:g}×",
            entry["method"],
            f"{scale * entry['metric']:.2f}",
            f"{entry['speedup']:.2f}×",
            f"{entry['flop_ratio']:.2f}×",
            *_counted(details[entry["speed"], entry["method"]]),
            f"{entry['bytes'] / 1e6:.1f} MB",
        )
        for entry in entries
        if entry["kind"] == "method"
    ]
    columns = ("asked", "method", metric, "measured", "fewer FLOPs", "parameters", "matrices in two", "file")
    text = f"Unpruned: {scale * dense:.2f}. Matrices that became two, of all that could."
    return [f"## {title}", text, report.markdown_table(Grid("", columns, tuple(rows), 6))]


def _counted(details: Mapping[str, Any]) -> tuple[str, str]:
    made = sum(len(row["weights"]) for row in details["ranks"] if row["ranks"])
    every = sum(len(row["weights"]) for row in details["ranks"])
    return f"{details['parameters'] / 1e6:.1f} M", f"{made} of {every}" if every else "–"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or write the page from the figures of earlier runs."""
    parser = argparse.ArgumentParser(prog="python -m fxprune.tools.benchmarks.low_rank", description=__doc__)
    add = parser.add_argument
    add("subjects", nargs="*", help=f"of {', '.join(SPEEDS)}")
    add("--out", type=Path, default=Path("out/ranks.jsonl"), help="where figures are kept")
    add("--threads", type=int, default=1, help="of the runtime (1)")
    add("--methods", nargs="+", choices=_METHODS, default=_METHODS, metavar="METHOD", help="(all)")
    add("--speeds", nargs="+", type=float, help="(those of the subject)")
    add("--note", default="", help="a sentence about the run, for the page")
    add("--page", type=Path, help="write the page from the figures, and measure nothing")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.page:
        options.page.write_text(render_low_rank(read_figures(options.out), options.note), encoding="utf-8")
        return
    for name in options.subjects or SPEEDS:
        bench = LowRankBench(name, options.out, options.threads)
        bench.note("machine", **report.machine())
        for speed in options.speeds or SPEEDS[name]:
            for method in options.methods:
                bench.run(speed, method)


if __name__ == "__main__":
    main()
