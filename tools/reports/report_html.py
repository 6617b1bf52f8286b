"""report.html: the results of a run in pictures, from the same dictionary as report.json."""

from collections.abc import Mapping
from typing import Any

from fxprune.tools.reports import report
from fxprune.tools.reports.charts import Chart, Line, chart
from fxprune.tools.reports.layer_bars import layer_rows
from fxprune.tools.reports.run_report import against, proof_rows
from fxprune.tools.reports.steps.recovery import recovery_reports
from fxprune.tools.reports.templates import Pair, Tile, pair, refused, render


def render_report(data: Mapping[str, Any]) -> str:
    """Return the whole page, as HTML."""
    return render(
        "report.html",
        tokens=_told(data["tokens"]),
        tiles=tiles(data, proof(data)),
        left=layer_rows(data["layers"], data["axes"]),
        charts=frontiers(data),
        recovered=recovery_reports(data["steps"]),
        plans=[*report.quantized(data), *report.plans(data["steps"])],
        proof=proof_rows(data),
        refused=refused(data["refused"]),
        **shared_parts(data),
    )


def shared_parts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a template that reports of runs and of training share."""
    own = {name: data[name] for name in ("model", "pipeline", "notes")}
    bars = {"latency": latency_bars(data), "sizes": size_bars(data)}
    return {**own, **bars, "session": report.describe_session(data["session"]), "where": report.where(data)}


def _told(tokens: Mapping[str, Any] | None) -> str:
    """Return how many tokens stay, in words; empty where all do."""
    return f"{tokens['after']:,} of {tokens['before']:,} tokens" if tokens else ""


def tiles(data: Mapping[str, Any], proved: Tile) -> list[Tile]:
    """Return the summary figures: time at the point measured last, parameters, the file, and the proof."""
    before, after = data["before"], data["after"]
    return [
        *map(_speed, data["latency"][-1:]),
        Tile("Parameters left", f"{after['parameters'] / before['parameters']:.1%}", f"{before['parameters']:,} → {after['parameters']:,}"),
        *_file_tile(data),
        *_metric_tile(data.get("metric")),
        proved,
    ]  # fmt: skip


def _file_tile(data: Mapping[str, Any]) -> list[Tile]:
    before, after = (data[when]["file_bytes"] for when in ("before", "after"))
    if before is None or after is None:
        return [Tile("model.onnx", "none", data["onnx"]["failed"])]
    file = report.size_rows(data).rows[2]
    return [Tile("model.onnx left", f"{after / before:.1%}", f"{file[1]} → {file[2]}")]


def _metric_tile(metric: Mapping[str, Any] | None) -> list[Tile]:
    if metric is None or metric["after"] is None:
        return []
    return [Tile("Your metric", f"{metric['after']:.4g}", f"{metric['name']}: {metric['before']:.4g} before")]


def _speed(entry: Mapping[str, Any]) -> Tile:
    times = " → ".join(_ms(entry[when]["median"]) for when in ("before_ms", "after_ms"))
    return Tile("Speed", f"{entry['speedup']:.2f}×", f"{times} at {report.describe_point(entry['point'])}")


def _ms(value: float) -> str:
    """Return milliseconds with two decimals, or with three digits below 1 ms."""
    return f"{value:.2f} ms" if value >= 1 else f"{value:.3g} ms"


def proof(data: Mapping[str, Any]) -> Tile:
    """Return the summary figure of the proof."""
    verdict = data["verdict"]
    told = f"largest relative difference from the {against(verdict)}; the bar is {verdict['bar']:.0e}"
    return Tile("Proof", f"{verdict['relative']:.1e}", told)


def latency_bars(data: Mapping[str, Any]) -> list[Pair]:
    """Return a pair of bars for each point, each to its own scale."""
    return [
        pair(
            report.describe_point(entry["point"]),
            (entry["before_ms"]["median"], entry["after_ms"]["median"]),
            (_ms(entry["before_ms"]["median"]), _ms(entry["after_ms"]["median"])),
            f"{entry['flops']['ratio']:.2f}× fewer operations",
        )
        for entry in data["latency"]
    ]


def size_bars(data: Mapping[str, Any]) -> list[Pair]:
    """Return a pair of bars for each row of the table of sizes."""
    before, after = data["before"], data["after"]
    known = [name for name in ("parameters", "bytes", "file_bytes", "flops") if after[name] is not None]
    numbers = [(before[name], after[name]) for name in known]
    rows = report.size_rows(data).rows
    return [pair(row[0], both, (row[1], row[2])) for row, both in zip(rows, numbers, strict=True)]


def frontiers(data: Mapping[str, Any]) -> list[Chart]:
    """Return a chart for each budget search: the error of the best plans against their cost, the plans tried, and the chosen one."""
    plans = [(step["text"], step.get("details") or {}) for step in data["steps"]]
    return [_frontier(text, plan) for text, plan in plans if plan.get("trials") and plan.get("budget")]


def _frontier(text: str, details: Mapping[str, Any]) -> Chart:
    curve = tuple((point["share"], point["error"]) for point in details["frontier"])
    trials = [(trial["measured"], trial["error"]) for trial in details["trials"]]
    words = [f"plan {i}: {share:.3f} left, error {error:.3g}" for i, (share, error) in enumerate(trials, 1)]
    chosen = next((i for i, (share, _) in enumerate(trials) if share == details["share"]), len(trials) - 1)
    (share, error), target = trials[chosen], details["target"]
    how = "measured" if details["budget"] == "latency" else "counted"
    others = [i for i in range(len(trials)) if i != chosen]
    errors = [error for _, error in (*curve, *trials)]
    asked = ((target, min(errors)), (target, max(errors)))
    lines = [
        Line("best plans, as predicted", curve),
        Line(f"tried, as {how}", tuple(trials[i] for i in others), False, "dot", tuple(words[i] for i in others)),
        Line("asked for", asked if asked[0] != asked[1] else ()),
        Line(f"chosen, as {how}", (trials[chosen],), False, "chosen", (words[chosen],), ("chosen",)),
    ]  # fmt: skip
    summary = (
        f"The chosen plan leaves {share:.3f} of the original's {details['budget']} where {target:g} was asked for, "
        f"at a predicted error of {error:.3g} ({details['error_is']})."
    )
    labels = f"share of the original's {details['budget']}", "predicted error"
    return chart(f"What {text} could choose from", summary, labels, [line for line in lines if line.points])
