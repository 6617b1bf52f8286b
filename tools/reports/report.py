"""Report of a run: one dictionary (report.json), and the same as tables (report.md, the terminal)."""

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch.fx import Node

from fxprune.analysis.axes import Refusal
from fxprune.ir import Point, Program, shape_of
from fxprune.runtimes import Settings, Timing
from fxprune.runtimes.registry import describe_settings, processor

FORMAT = "fxprune.report/1"
PACKAGES = ("fxprune", "torch", "onnx", "onnxruntime", "onnxscript", "openvino", "torchao")


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn; the last `numbers` columns are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int = 0

    def is_number(self, place: int) -> bool:
        """Return whether the column at a place is numbers."""
        return place >= len(self.columns) - self.numbers


def machine() -> dict[str, Any]:
    """Return the machine of the measurements: Python, processor, package versions."""
    return {"python": platform.python_version(), "processor": processor(), "packages": _versions()}


def latency(point: Point, before: Timing, after: Timing, flops: tuple[int, int]) -> dict[str, Any]:
    """Return one point's entry: times before and after, with the ratio of operations beside the speedup."""
    counts = {"before": flops[0], "after": flops[1], "ratio": flops[0] / max(flops[1], 1)}
    return {**times(point, before, after), "flops": counts}


def times(point: Point, before: Timing, after: Timing) -> dict[str, Any]:
    """Return one point's times before and after, and the speedup."""
    return {
        "point": dict(point),
        "before_ms": asdict(before),
        "after_ms": asdict(after),
        "speedup": before.median / after.median,
    }


def refusals(found: Iterable[Refusal]) -> list[dict[str, Any]]:
    """Return the refusals as plain data, grouped by reason, the most frequent first."""
    groups: dict[str, list[Refusal]] = {}
    for refusal in found:
        groups.setdefault(refusal.why, []).append(refusal)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        {
            "why": why,
            "count": len(group),
            "what": [refusal.what for refusal in group],
            "operator": group[0].operator,
            "node": group[0].node,
            "source": short(group[0].source),
        }
        for why, group in ordered
    ]


def freed(program: Program, slim: Program) -> list[dict[str, Any]]:
    """Return the outputs that may shrink, with their sizes on the example inputs before and after."""
    after = slim.named_outputs()
    return [
        {"name": name, "before": _sizes_of(node), "after": _sizes_of(after[name])}
        for name, node in program.named_outputs().items()
        if name in program.free_outputs
    ]


def _sizes_of(node: Node) -> list[int]:
    return list(shape_of(node.meta["val"]) or ())


def markdown_page(head: Iterable[str], grids: Iterable[Grid], end: Iterable[str]) -> str:
    """Return a Markdown page: paragraphs, tables under their titles, paragraphs; the texts of tables are no markup."""
    tables = [f"## {markdown_text(grid.title)}\n\n{markdown_table(_escaped(grid))}" for grid in grids]
    return "\n\n".join([*head, *tables, *end]) + "\n"


def markdown_table(grid: Grid) -> str:
    """Return a grid as a Markdown table."""
    rules = ["---:" if grid.is_number(place) else "---" for place in range(len(grid.columns))]
    lines = [grid.columns, tuple(rules), *grid.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _escaped(grid: Grid) -> Grid:
    """Return a grid whose texts are no Markdown, since names come from models and files."""
    rows = tuple(tuple(map(markdown_text, row)) for row in grid.rows)
    return replace(grid, rows=rows)


def markdown_text(text: str) -> str:
    """Return a text that may come from a file as one line of Markdown without markup; a bar is the business of its table."""
    return re.sub(r"[\\`*\[\]<&]", r"\\\g<0>", " ".join(text.split()))


def where(report: Mapping[str, Any]) -> str:
    """Return a sentence on the machine of a report's measurements."""
    machine = report["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return f"Measured on {machine['processor']} with Python {machine['python']}, {packages}."


def short(source: str) -> str:
    """Return a source line without the folders of installed packages and the current one."""
    return source.rpartition("site-packages/")[2].removeprefix(f"{Path.cwd()}/")


def describe_point(point: Mapping[str, int]) -> str:
    """Return a point in words: `batch 8, length 64`."""
    return ", ".join(f"{axis} {size}" for axis, size in point.items()) or "fixed sizes"


def describe_session(settings: Mapping[str, Any]) -> str:
    """Return the settings of the runtime in words."""
    return describe_settings(Settings(**settings))


def size_rows(report: Mapping[str, Any]) -> Grid:
    """Return a table of parameters, bytes and FLOPs before and after."""
    before, after = report["before"], report["after"]
    rows = [
        _row("parameters", before["parameters"], after["parameters"], ""),
        _row("weights", before["bytes"], after["bytes"], "B"),
        *_file_row(before["file_bytes"], after["file_bytes"]),
        _row(f"operations at {describe_point(report['example'])}", before["flops"], after["flops"], "FLOP"),
    ]
    return Grid("Size", ("", "before", "after", "ratio"), tuple(rows), numbers=3)


def metric_grids(report: Mapping[str, Any]) -> list[Grid]:
    """Return a table of the user's own metric before and after; none where there is none."""
    metric = report.get("metric")
    if metric is None:
        return []
    before, after = metric["before"], metric["after"]
    now = ("none", metric["why"]) if after is None else (f"{after:.5g}", f"{after - before:+.3g}")
    row = metric["name"], f"{before:.5g}", *now
    return [Grid("Your metric", ("", "before", "after", "change"), (row,), numbers=3)]


def _file_row(before: int | None, after: int | None) -> list[tuple[str, str, str, str]]:
    """Return the row of the file; none where there is none."""
    return [_row("model.onnx", before, after, "B")] if before is not None and after is not None else []


def _row(name: str, before: int, after: int, unit: str) -> tuple[str, str, str, str]:
    ratio = f"{before / after:.2f}×" if after else "–"
    return name, _quantity(before, before, unit), _quantity(after, before, unit), ratio


def _quantity(value: int, beside: int, unit: str) -> str:
    """Return a number with its unit, scaled as the number beside it, so that both are easy to compare."""
    return scaled(value, beside, unit) if unit else f"{value:,}"


def scaled(value: int, beside: int, unit: str = "") -> str:
    """Return a number with a prefix that suits the number beside it, and its unit: `1.77 M`."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if beside >= size:
            return f"{value / size:.2f} {prefix}{unit}"
    return f"{value} {unit}".rstrip()


def latency_rows(report: Mapping[str, Any]) -> Grid:
    """Return a table of latencies, one row per point."""
    title = f"Latency in ms: medians, {describe_session(report['session'])}"
    if "failed" in report.get("onnx", {}):
        title = "Latency: not measured, since there is no model.onnx"
    rows = [
        (describe_point(entry["point"]), *_times(entry), f"{entry['flops']['ratio']:.2f}×")
        for entry in report["latency"]
    ]
    return Grid(title, ("at", "before", "after", "speedup", "fewer FLOPs"), tuple(rows), numbers=4)


def _times(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    before, after = (f"{entry[when]['median']:.2f}" for when in ("before_ms", "after_ms"))
    return before, after, f"{entry['speedup']:.2f}×"


def quantized(report: Mapping[str, Any]) -> list[Grid]:
    """Return a table of the quantized file's size, latency and agreement with model.onnx; none where there is none."""
    found = report.get("quantized")
    if not found:
        return []
    size = _row("bytes", found["bytes"]["before"], found["bytes"]["after"], "B")
    latencies = [(f"ms at {describe_point(entry['point'])}", *_times(entry)) for entry in found["latency"]]
    agreement = [
        (f"{name}: largest difference, cosine", "", f"{row['relative']:.1e}", f"{row['cosine']:.4f}")
        for name, row in found["agreement"].items()
    ]
    title = f"Quantized ({found['how']}): {found['file']} beside model.onnx, compared on the {found['compared_on']}"
    return [Grid(title, ("", "model.onnx", found["file"], ""), (size, *latencies, *agreement), numbers=3)]


def refused_rows(report: Mapping[str, Any]) -> Grid:
    """Return a table of what stays whole, and why."""
    rows = [
        (entry["why"], str(entry["count"]), few(entry["what"]), entry["source"] or entry["node"])
        for entry in report["refused"]
    ]
    return Grid("What stays whole, and why", ("why", "count", "what", "where"), tuple(rows))


def plans(steps: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """Return tables of what each step's plan keeps, its ranks, and the plans that were tried."""
    found: list[Grid] = []
    for step in steps:
        details = step.get("details") or {}
        if details.get("sites"):
            found += [_kept(step["text"], details)]
        if details.get("ranks"):
            found += [_ranks(step["text"], details["ranks"])]
        if details.get("trials"):
            found += [_tried(details)]
    return found


def _ranks(text: str, rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Return a table of the matrices that became two, and why the others did not; queries, keys and values are one row."""
    made = [
        (
            few([name.removesuffix(".weight") for name in row["weights"]]),
            " × ".join(map(str, row["size"])),
            ("one product, " if row["shared"] else "") + ", ".join(map(str, row["ranks"])) or row["why"],
            f"{row['missing']:.1%}" if row["ranks"] else "–",
            f"{row['dense']:.2f}",
            f"{row['factors']:.2f}" if row["factors"] else "–",
        )
        for row in rows
    ]
    numbers = ("energy lost", "whole, ms", "as two, ms")
    columns = ("matrix", "outputs × inputs", "rank, or why it is whole", *numbers)
    return Grid(f"What {text} made of matrices", columns, tuple(made), numbers=3)


def _kept(text: str, details: Mapping[str, Any]) -> Grid:
    rows = [
        (site["site"], site.get("removed", "") or _axes(site["axes"]), f"{site['error']:.1e}")
        for site in details["sites"]
    ]
    return Grid(f"What {text} keeps", ("site", "units", "error"), tuple(rows), numbers=1)


def _axes(axes: Mapping[str, Sequence[int]]) -> str:
    cut = [(name.rpartition(".")[2], *counts) for name, counts in axes.items()]
    return ", ".join(f"{kept} of {size} {name}" for name, kept, size in cut)


def _tried(details: Mapping[str, Any]) -> Grid:
    pairs = [(trial["predicted"], trial["measured"]) for trial in details["trials"]]
    rows = [
        (str(place), f"{predicted:.3f}", f"{measured:.3f}", f"{predicted / measured - 1:+.1%}")
        for place, (predicted, measured) in enumerate(pairs, 1)
    ]
    refits = [refit for refit in details.get("refits", ()) if refit["how"] != "as it was"]
    title = f"Plans, as shares of the original; {len(refits)} matrices were re-fitted afterwards"
    return Grid(title, ("plan", "predicted", "measured", "prediction's error"), tuple(rows), numbers=4)


def few(names: Sequence[str]) -> str:
    """Return the first two names of a list, and that there are more."""
    return ", ".join(names[:2]) + (", …" if len(names) > 2 else "")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
