"""Page of `fxprune.tools.benchmarks.speed`: docs/results/speed.md, written from its file of figures."""

import statistics
from typing import Any

from fxprune.tools.reports.report import Grid, describe_point, markdown_table, where

_Entries = list[dict[str, Any]]

_TITLES = {
    "minilm": "MiniLM as a sentence encoder: Spearman × 100 on STS-benchmark's test",
    "smollm2": "SmolLM2-135M: perplexity on WikiText-2 (lower is better)",
    "efficientnet": "EfficientNet-Lite0: agreement with the unpruned model, in percent of crops of real photographs",
}
PERCENT = ("minilm", "efficientnet")

_HEAD = """# Slim to a measured speed, without training

`slim(latency=0.5)` decides over heads, their q/k and v dims, neurons, channels and residual branches at once, so that the emitted file
takes half of the time on the runtime, and re-fits the remaining weights by least squares on unlabelled inputs. Nothing is trained. What
follows comes from `make bench` (`python -m fxprune.tools.benchmarks.speed`; the figures are kept in `docs/results/speed.jsonl`).
All methods of a table were measured in turns with the original, at the speed that was asked for;
ratios are what counts, for machines are shared."""

_METHODS = """- **fxprune**: `slim(latency=1/speed)`: scores by optimal brain surgery on the readers (`obs`), repair `all`.
- **the same plan, no repair**: the same units are gone, and no weight is re-fitted.
- **magnitude**, **random**: the same share of every site, by `slim(score="magnitude", repair="none")` and `score="random"`.
- **Torch-Pruning**: as its documentation says, with its hints, at the ratio that comes closest to the speed (bisection over measured
  files)."""


def render_speed(entries: _Entries, note: str = "") -> str:
    """The Markdown page; `note` is a sentence about the run."""
    parts = [_HEAD, _METHODS, *([note] if note else [])]
    for name in dict.fromkeys(entry["subject"] for entry in entries):
        parts += _subject(name, [entry for entry in entries if entry["subject"] == name])
    machines = [entry for entry in entries if entry["kind"] == "machine"]
    if machines:
        parts.append(where({"machine": machines[-1]}))
    return "\n\n".join(parts) + "\n"


def _subject(name: str, entries: _Entries) -> list[str]:
    dense = next(entry for entry in entries if entry["kind"] == "dense")
    scale = 100 if name in PERCENT else 1
    methods = _methods(name, _of(entries, "method"), dense["metric"] * scale, scale)
    grids = [methods, _points(_of(entries, "point"))]
    parts = [f"## {_TITLES[name]}", f"The original: {dense['metric'] * scale:.2f}. {_levels(dense)}"]
    parts += [markdown_table(grid) for grid in grids if grid.rows]
    told = (_predictions(entries), _fusions(entries), _cost(entries), _refused(entries))
    return [*parts, *filter(None, told)]


def _of(entries: _Entries, kind: str) -> _Entries:
    return [entry for entry in entries if entry["kind"] == kind]


def _methods(name: str, rows: _Entries, dense: float, scale: int) -> Grid:
    columns = ("asked", "method", "speedup", "fewer FLOPs", "metric", "against the original")
    lines = [
        (
            f"{row['speed']:g}×",
            row["method"],
            f"{row['speedup']:.2f}×",
            f"{row['flop_ratio']:.2f}×",
            f"{row['metric'] * scale:.2f}",
            f"{row['metric'] * scale - dense:+.2f}",
        )
        for row in sorted(rows, key=lambda row: float(row["speed"]))
    ]
    return Grid(name, columns, tuple(lines), numbers=4)


def _points(rows: _Entries) -> Grid:
    columns = ("asked", "at", "threads", "speedup", "fewer FLOPs", "speedup / FLOP ratio", "levels")
    lines = [
        (
            f"{row['speed']:g}×",
            describe_point(row["point"]),
            str(row["at_threads"]),
            f"{row['speedup']:.2f}×",
            f"{row['flop_ratio']:.2f}×",
            f"{row['speedup'] / row['flop_ratio']:.2f}",
            f"{row['levels']['before']} / {row['levels']['after']}",
        )
        for row in rows
    ]
    return Grid("points", columns, tuple(lines), numbers=5)


def _levels(dense: dict[str, Any]) -> str:
    told = ", ".join(f"{level} {ms:.1f} ms" for level, ms in dense["levels"].items())
    best = min(dense["levels"], key=dense["levels"].get)
    return f"Its file under ONNX Runtime's optimisation levels: {told}; all speedups are against the best, `{best}`."


def _predictions(entries: _Entries) -> str:
    trials = [trial for entry in _of(entries, "trials") for trial in entry["trials"]]
    errors = [abs(trial["predicted"] / trial["measured"] - 1) for trial in trials]
    if not errors:
        return ""
    return (
        f"Predicted against measured latency of {len(errors)} plans: median error {statistics.median(errors):.1%},"
        f" worst {max(errors):.1%}."
    )


def _fusions(entries: _Entries) -> str:
    found = _of(entries, "fusions")
    if not found:
        return ""
    before, after = found[0]["before"], [entry["after"] for entry in found]
    same = all(one[key] == before[key] for one in after for key in ("attention", "gelu", "normalisation"))
    counts = ", ".join(f"{before[key]} {key}" for key in ("attention", "gelu", "normalisation"))
    verdict = "as many in every slim file" if same else f"in the slim files {after}"
    return f"Operators of ONNX Runtime's optimised graph: {counts}; {verdict}."


def _cost(entries: _Entries) -> str:
    runs = [entry for entry in _of(entries, "trials") if entry["score"] == "obs"]
    if not runs:
        return ""
    seconds = ", ".join(f"{run['speed']:g}×: {run['seconds']:.0f} s" for run in runs)
    size = runs[0]["model_bytes"]
    phases = dict.fromkeys(name for run in runs for name in run["memory"])
    grown = {name: max(run["memory"].get(name, 0) for run in runs) / size for name in phases}
    told = ", ".join(f"{name} {share:.1f}" for name, share in grown.items())
    return f"`slim` took {seconds}. Memory by phase, as growth over the start in sizes of the model ({size / 1e6:.0f} MB): {told}."


def _refused(entries: _Entries) -> str:
    found = _of(entries, "refused")
    return " ".join(f"At {entry['speed']:g}×, {entry['method']}: {entry['why']}." for entry in found)
