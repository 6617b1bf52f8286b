"""Report of `fxprune train`, from train.json: the metric, density over time, what is left of each layer, latency and proof."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxprune.pipeline import Result
from fxprune.tools.reports import report
from fxprune.tools.reports.charts import Chart, Line, chart
from fxprune.tools.reports.layer_bars import layer_rows
from fxprune.tools.reports.layers_report import MARKERS, pyplot, save_figure
from fxprune.tools.reports.report import Grid
from fxprune.tools.reports.report_html import shared_parts, tiles
from fxprune.tools.reports.templates import Tile, render

POINT = {"batch": 8, "length": 64}  # the point where lowerings are compared

PLAIN = {"step", "loss", "density"}  # entries of the history that are not metrics


def render_training(found: Mapping[str, Any]) -> str:
    """Return the whole page, as HTML."""
    return render(
        "train.html",
        data=found["data"],
        tiles=[*_metric(found), *tiles(found, _proved(found))],
        metrics=metric_rows(found),
        charts=over_time(found),
        left=layer_rows(found["layers"], axes(found)),
        proof=train_proof(found),
        setting=describe_training(found),
        **shared_parts(found),
    )


def _metric(found: Mapping[str, Any]) -> list[Tile]:
    name, value = next(iter(found["student"].items()), ("", 0.0))
    teacher = found["teacher"].get(name)
    told = "taught by labels" if teacher is None else f"the teacher has {teacher:.4g}"
    return [Tile(f"{name.capitalize()} on dev", f"{value:.4g}", told)] if name else []


def _proved(found: Mapping[str, Any]) -> Tile:
    largest = max(found["proved"].values())
    told = f"the largest relative difference of {len(found['proved'])} claims"
    return Tile("Proof", f"{largest:.1e}", told)


def axes(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the axes of the program, with what training left of those in `heads` and `left`."""
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
    """Return charts of density and metric over steps, and of the loss; a metric of which less is better has its own chart."""
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
    """Return a line with marks for each metric, and one for the teacher's."""
    history = found["history"]
    ends = history[0]["step"], history[-1]["step"]
    made: list[Line] = []
    for name in dict.fromkeys(name for entry in history for name in entry if name not in PLAIN):
        points = tuple((entry["step"], entry[name]) for entry in history if name in entry)
        told = tuple(f"step {step}: {name} {value:.4g}" for step, value in points)
        made.append(Line(name, points, True, "dot", told))
        if name in found["teacher"]:
            made.append(Line(f"{name} of the teacher", tuple((end, found["teacher"][name]) for end in ends)))
    return made


def describe_run(result: Result) -> dict[str, Any]:
    """Return the entries of train.json about a pipeline: joined histories, what is left of gates and heads, the lowering, the proofs."""
    runs = [step.details["training"] for step in result.steps if "training" in step.details]
    last = ([run for run in runs if run["gates"]] or runs)[-1]
    shared = {name: last[name] for name in ("density", "left", "heads", "lowering", "padded")}
    steps = sum(run["steps"] for run in runs)
    return {**shared, "history": _history(runs), "steps": steps, "proved": _proofs(result)}


def _history(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the histories of all runs as one; a run without gates has the density of the one before it."""
    found: list[dict[str, Any]] = []
    for run in runs:
        past = found[-1]["step"] if found else 0
        same = {"density": found[-1]["density"]} if found and not run["gates"] else {}
        found += [{**entry, "step": entry["step"] + past, **same} for entry in run["history"]]
    return found


def _proofs(result: Result) -> dict[str, float]:
    """Return the largest difference by claim; a claim that is made again is numbered."""
    found: dict[str, float] = {}
    for claim in result.claims:
        own = "lowered" if claim.trained else "after" if "lowered" in found else "before training"
        number = 1 + sum(name.partition(" (")[0] == own for name in found)
        found[f"{own} ({number})" if number > 1 else own] = claim.prove().relative
    return found


def train_grids(found: Mapping[str, Any]) -> list[Grid]:
    """Return tables of the metric, sizes, latency, what is left, and what was proved."""
    costs = report.size_rows(found), report.latency_rows(found)
    return [metric_rows(found), *costs, _left(found), train_proof(found)]


def train_markdown(found: Mapping[str, Any]) -> str:
    """Return the report as a Markdown page."""
    title = report.markdown_text(f"{found['model']} on {found['data']}: {found['pipeline']}")
    head = f"# {title}", "![what happened](train.svg)"
    return report.markdown_page(head, train_grids(found), (describe_training(found), report.where(found)))


def describe_training(found: Mapping[str, Any]) -> str:
    """Return a text on how the numbers were made."""
    recipe, (train, dev) = found["recipe"], found["rows"]
    return (
        f"{found['task']}, trained on {train} rows, judged on {dev}: {recipe['epochs']} epochs, learning rate {recipe['learning_rate']:g}, "
        f"batches of {recipe['batch_size']}, precision {recipe['precision']}, seed {recipe['seed']}. "
        f"Latency: {report.describe_session(found['session'])}. Units of unequal sizes: {_describe_lowering(found['lowering'])}."
    )


def _describe_lowering(lowering: Any) -> str:
    if isinstance(lowering, str):
        return lowering
    return ", ".join(f"{axis}: {row}" for axis, row in lowering.items()) or "none"


def metric_rows(found: Mapping[str, Any]) -> Grid:
    """Return a table of the metrics of teacher and student, and the density."""
    rows = [
        (name, f"{found['teacher'][name]:.4g}" if name in found["teacher"] else "–", f"{value:.4g}")
        for name, value in found["student"].items()
    ]
    rows.append(("density of what has gates", "1", f"{found['density']:.4g}"))
    return Grid("On dev", ("", "teacher", "student"), tuple(rows), 2)


def _left(found: Mapping[str, Any]) -> Grid:
    rows = [(entry["axis"], entry["role"], _open(entry)) for entry in found["left"]]
    return Grid("What is left", ("axis", "role", "open"), tuple(rows))


def _open(entry: Mapping[str, Any]) -> str:
    """Return the open units as text: `512 of 1536`; `4 of 12: 20, 8, 31, 2 of 32` for dims of heads."""
    counts = entry["open"]
    if not isinstance(counts, list):
        return f"{counts} of {entry['of']}"
    some = [count for count in counts if count]
    sizes = f": {', '.join(map(str, some))} of {entry['of']}" if some else ""
    return f"{len(some)} of {len(counts)}{sizes}"


def train_proof(found: Mapping[str, Any]) -> Grid:
    """Return a table of what was proved, with the largest differences."""
    claims = {
        "before training": "what was pruned before training == the model with those units zeroed or never chosen",
        "lowered": "lowered == gated",
        "after": "what was pruned after training == what was lowered with those units zeroed or never chosen",
        "onnx": "ONNX Runtime == the lowered program",
    }
    rows = [(claims[name.partition(" (")[0]], f"{value:.1e}") for name, value in found["proved"].items()]
    return Grid("Proof: the largest difference, over the largest output", ("claim", "value"), tuple(rows), 1)


def draw_training(found: Mapping[str, Any], folder: Path) -> None:
    """Draw train.svg and train.png: the loss, density and metric over steps; below, how much of each axis is left."""
    figure, ((top, right), (below, heads)) = pyplot().subplots(2, 2, figsize=(11, 7), layout="constrained")
    _over_time(found, top, right)
    _shares(found, below)
    _sizes(found, heads)
    save_figure(figure, folder / "train")


def _over_time(found: Mapping[str, Any], left_: Any, right: Any) -> None:
    history = found["history"]
    steps = [entry["step"] for entry in history]
    left_.plot(steps, [entry["loss"] for entry in history], color="0.5", label="loss")
    left_.set(xlabel="step", ylabel="loss")
    right.plot(steps, [entry["density"] for entry in history], label="density")
    right.set(xlabel="step", ylabel="density and metric", ylim=(0, 1.05))
    judged = [entry for entry in history if len(entry) > len(PLAIN)]
    names = [name for name in (judged[-1] if judged else {}) if name not in PLAIN]
    for name, marker in zip(names, MARKERS, strict=False):
        axes = left_.twinx() if found["lower_is_better"] else right
        points = [(entry["step"], entry[name]) for entry in judged]
        color = f"C{1 + names.index(name)}"
        axes.plot(*zip(*points, strict=True), marker=marker, linestyle="--", color=color, label=name)
        if name in found["teacher"]:
            axes.axhline(found["teacher"][name], linestyle=":", color="0.4", label=f"{name} of the teacher")
        axes.legend(loc="best")
    left_.grid(alpha=0.3)
    right.grid(alpha=0.3)


def _shares(found: Mapping[str, Any], axes: Any) -> None:
    """Draw how much of each axis is left, layer by layer, a line for each role."""
    roles: dict[str, list[float]] = {}
    for entry in found["left"]:
        counts = entry["open"] if isinstance(entry["open"], list) else [entry["open"]]
        roles.setdefault(entry["role"], []).append(sum(counts) / max(1, len(counts) * entry["of"]))
    for (role, shares), marker in zip(roles.items(), MARKERS, strict=False):
        axes.plot(range(len(shares)), shares, marker=marker, label=role)
    axes.set(xlabel="layer", ylabel="share that is left", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()


def _sizes(found: Mapping[str, Any], axes: Any) -> None:
    """Draw the dims of every head that is left: one bar per head, the largest first, layer by layer."""
    within = [entry for entry in found["left"] if isinstance(entry["open"], list)]
    roles = list(dict.fromkeys(entry["role"] for entry in within))
    for place, role in enumerate(roles):
        layers: Sequence[Any] = [entry for entry in within if entry["role"] == role]
        for layer, entry in enumerate(layers):
            counts = sorted((count for count in entry["open"] if count), reverse=True)
            width = 0.8 / len(roles) / max(1, len(entry["open"]))
            base = layer - 0.4 + 0.8 * place / len(roles)
            spots = [base + width * (i + 0.5) for i in range(len(counts))]
            axes.bar(spots, counts, width=0.9 * width, color=f"C{place}", label=role if layer == 0 else None)
    axes.set(xlabel="layer", ylabel="dims of each head that is left")
    if roles:
        axes.legend()
