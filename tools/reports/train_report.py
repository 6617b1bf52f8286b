"""report.html of `fxprune train`: the metric, density over time, what is left of each layer, latency and proof, from train.json."""

from collections.abc import Mapping
from typing import Any

from fxprune.tools.reports import report, train_page
from fxprune.tools.reports.charts import Chart, Line, chart
from fxprune.tools.reports.layer_bars import remainder
from fxprune.tools.reports.report_html import latency_bars, size_bars, tiles
from fxprune.tools.reports.templates import Tile, render


def render_training(found: Mapping[str, Any]) -> str:
    """The whole page, as HTML."""
    metrics, proof = train_page.metrics(found), train_page.train_proof(found)
    return render(
        "train.html",
        model=found["model"],
        data=found["data"],
        pipeline=found["pipeline"],
        tiles=[*_metric(found), *tiles(found, _proved(found))],
        metrics=metrics,
        charts=over_time(found),
        left=remainder(found["layers"], axes(found)),
        latency=latency_bars(found),
        session=report.describe_session(found["session"]),
        sizes=size_bars(found),
        proof=proof,
        notes=found["notes"],
        setting=train_page.describe_training(found),
        where=report.where(found),
    )


def _metric(found: Mapping[str, Any]) -> list[Tile]:
    name, value = next(iter(found["student"].items()), ("", 0.0))
    teacher = found["teacher"].get(name)
    told = "taught by labels" if teacher is None else f"the teacher has {teacher:.4g}"
    return [Tile(f"{name.capitalize()} on dev", f"{value:.4g}", told)] if name else []


def _proved(found: Mapping[str, Any]) -> Tile:
    largest = max(found["proved"].values())
    return Tile(
        "Proof", f"{largest:.1e}", f"the largest relative difference of {len(found['proved'])} claims"
    )


def axes(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The axes of the program, with what training left of them where gates said so."""
    kept = {name: {"kept": heads, "after": len(heads)} for name, heads in found["heads"].items()}
    rows = {axis["name"]: axis | kept.get(axis["name"], {}) for axis in found["axes"]}
    layers = [layer["name"] for layer in found["layers"] if layer["name"]]
    for entry in found["left"]:
        name, counts = entry["axis"], entry["open"]
        layer = next((layer for layer in layers if f"{name}.".startswith(f"{layer}.")), "")
        known = rows.get(name, {"layer": layer})
        left = {"after": sum(counts), "dims": counts} if isinstance(counts, list) else {"after": counts}
        rows[name] = known | {"name": name, "role": entry["role"], "before": entry["of"]} | left
    return list(rows.values())


def over_time(found: Mapping[str, Any]) -> list[Chart]:
    """Density and metric over steps, and the loss; a metric of which less is better has a chart of its own."""
    history = found["history"]
    if len(history) < 2:
        return []
    density = Line("density", tuple((entry["step"], entry["density"]) for entry in history))
    metrics = _metrics(found)
    shares, others = ([density], metrics) if found["lower_is_better"] else ([density, *metrics], [])
    last = history[-1]
    summary = f"After {last['step']} steps the density of what has gates is {last['density']:.3g}."
    title = "Density over time" if others or not metrics else "Density and metric over time"
    made = [chart(title, summary, ("step", "share"), shares, ends=(0.0, 1.05))]
    if others:
        made.append(chart("Metric over time; less is better", "", ("step", metrics[0].label), others))
    loss = Line("loss", tuple((entry["step"], entry["loss"]) for entry in history))
    return [*made, chart("Loss over time", f"The last loss is {last['loss']:.3g}.", ("step", "loss"), [loss])]


def _metrics(found: Mapping[str, Any]) -> list[Line]:
    """A line with marks for each metric, and one for the teacher's."""
    history = found["history"]
    ends = history[0]["step"], history[-1]["step"]
    made: list[Line] = []
    for name in dict.fromkeys(name for entry in history for name in entry if name not in train_page.PLAIN):
        points = tuple((entry["step"], entry[name]) for entry in history if name in entry)
        told = tuple(f"step {step}: {name} {value:.4g}" for step, value in points)
        made.append(Line(name, points, True, "dot", told))
        if name in found["teacher"]:
            made.append(Line(f"{name} of the teacher", tuple((end, found["teacher"][name]) for end in ends)))
    return made
