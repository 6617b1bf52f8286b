"""Report of a recovery: what was chosen and what it brought as a table, and the held-back loss against time as a chart and a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxprune.tools.reports.charts import Chart, Line, chart
from fxprune.tools.reports.report import Grid, few
from fxprune.training.recovery import OUTPUT_DISTANCES
from fxprune.training.recovery.progress import closed

_OWN = "the distance that the user gave"
_PRECISIONS = {"no": "that of the weights", "bf16": "mixed, bfloat16"}


@dataclass(frozen=True)
class RecoveryReport:
    """Report of one step: its table, its chart, and the table of the same curve; no curve where nothing was trained."""

    grid: Grid
    chart: Chart | None = None
    curve: Grid | None = None


def recovery_reports(steps: Sequence[Mapping[str, Any]]) -> list[RecoveryReport]:
    """Return a report for each step that recovered."""
    found = [(step["text"], (step.get("details") or {}).get("recovery")) for step in steps]
    return [_report(text, details) for text, details in found if details]


def _report(text: str, details: Mapping[str, Any]) -> RecoveryReport:
    rows = [("result", _result(details)), *_trained(details), *_compared(details)]
    grid = Grid(f"What {text} learned", ("", "value"), tuple(rows))
    if "history" not in details:
        return RecoveryReport(grid)
    return RecoveryReport(grid, _chart(text, details), _curve(text, details))


def _result(details: Mapping[str, Any]) -> str:
    if "why" in details:
        return str(details["why"])
    before, after = details["before"], details["after"]
    change = f"held-back loss {before:.3g} → {after:.3g}"
    if details["kept"]:
        return f"{closed(before, after):.0%} of the gap to the original closed: {change}"
    metric = details.get("metric")
    if metric:
        return (
            f"the program stays as it was: the metric fell from {metric[0]:.4g} to {metric[1]:.4g} ({change})"
        )
    return "nothing improved, and the program stays as it was"


def _trained(details: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield rows on how it was trained; none where nothing was."""
    if "history" not in details:
        return
    last, best = details["history"][-1], _best(details["history"])
    yield "minutes", f"{last['seconds'] / 60:.1f}; the best moment after {best['seconds'] / 60:.1f}"
    yield "steps", f"{last['step']:,.0f}; the best moment after {best['step']:,.0f}"
    tried = {row["rate"] for row in details["tried"]}
    yield "learning rate", f"{details['rate']:g}" + f", the best of {len(tried)} tried" * (len(tried) > 1)
    yield "precision", _PRECISIONS.get(details["precision"], details["precision"])
    if details["statistics"]:
        yield "batch norms", _batch_norms(details)
    if details["images"]:
        yield "augmented images", few(details["images"])
    if details["resumed"]:
        yield "went on", f"at step {details['resumed']:,}, from a checkpoint"
    if details["anew"]:
        yield "began anew", details["anew"]


def _batch_norms(details: Mapping[str, Any]) -> str:
    trained = "statistics of each batch" if details["batch_statistics"] else "running statistics"
    found = details["statistics"]
    change = f"held-back loss {found['before']:.3g} → {found['after']:.3g}"
    first = f"estimated anew first ({change})" if found["kept"] else f"not estimated anew ({change})"
    return f"trained with {trained}; {first}"


def _compared(details: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield rows on what was compared with the original."""
    for name, distance in details["outputs"].items():
        told = (
            _OWN
            if details["own_distance"]
            else f"{distance}: {OUTPUT_DISTANCES[distance][1]}"
            if distance
            else "not compared"
        )
        yield f"output {name}", told
    if details["matched"]:
        yield "values inside", f"{len(details['matched'])} matched: {few(details['matched'])}"


def _best(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return min(history, key=lambda entry: float(entry["loss"]))


def _chart(text: str, details: Mapping[str, Any]) -> Chart:
    history, before = details["history"], details["before"]
    best = _best(history)
    points = [(0.0, before), *((entry["seconds"] / 60, entry["loss"]) for entry in history)]
    words = [f"{minutes:.2f} min: {loss:.4g}" for minutes, loss in points]
    chosen, end = (best["seconds"] / 60, best["loss"]), points[-1][0]
    lines = [
        Line("held-back loss", tuple(points), mark="dot", titles=tuple(words)),
        Line("start", (points[0],), False, "dot", (words[0],), ("start",)),
        Line("the original", ((0.0, 0.0), (end, 0.0))),
        Line(
            "best moment", (chosen,), False, "chosen", (f"{chosen[0]:.2f} min: {chosen[1]:.4g}",), ("best",)
        ),
    ]
    title, labels = f"How {text} came closer to the original", ("minutes", "held-back loss")
    return chart(title, f"{_result(details)}.", labels, lines, ends=(0.0, None))


def _curve(text: str, details: Mapping[str, Any]) -> Grid:
    before = details["before"]
    rows = [("0.0", "0", f"{before:.4g}", f"{0:.0%}")] + [
        (f"{entry['seconds'] / 60:.1f}", f"{entry['step']:,.0f}", f"{entry['loss']:.4g}", f"{closed(before, entry['loss']):.0%}")
        for entry in details["history"]
    ]  # fmt: skip
    columns = ("minutes", "steps", "held-back loss", "of the gap closed")
    return Grid(f"Held-back loss of {text}", columns, tuple(rows), numbers=4)
