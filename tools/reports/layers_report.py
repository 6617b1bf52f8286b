"""report.html of `fxprune layers`: the metric against latency for each number of removed layers, and which go, from layers.json."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from fxprune.tools.reports import curve, report
from fxprune.tools.reports.charts import Chart, Line, chart
from fxprune.tools.reports.templates import Tile, render


def render_layers(found: Mapping[str, Any]) -> str:
    """The whole page, as HTML."""
    return render(
        "layers.html",
        model=found["model"],
        data=found["data"],
        tiles=_tiles(found),
        charts=[_curve(found), _costs(found)],
        grids=curve.curve_grids(found),
        setting=curve.describe_search(found),
        where=report.where(found),
    )


def _tiles(found: Mapping[str, Any]) -> list[Tile]:
    first, last = found["family"][0], found["family"][-1]
    method, runs = next(iter(found["methods"].items()))
    metrics = [mean(run["metrics"][place] for run in runs) for place in (0, -1)]
    removed = len(found["family"]) - 1
    times = first["ms"]["median"], last["ms"]["median"]
    told = f"{found['metric']} on dev, chosen by {method}; with all of them {metrics[0]:.3f}"
    counts = first["parameters"], last["parameters"]
    return [
        Tile(f"Without {removed} of the layers", f"{metrics[1]:.3f}", told),
        Tile("Speed", f"{times[0] / times[1]:.2f}×", f"{times[0]:.2f} → {times[1]:.2f} ms at {report.describe_point(found['point'])}"),
        Tile("Parameters left", f"{counts[1] / counts[0]:.1%}", f"{counts[0]:,} → {counts[1]:,}"),
    ]  # fmt: skip


def _curve(found: Mapping[str, Any]) -> Chart:
    """A line for each way of choosing; the first one's family is what was measured, and its last member was asked for."""
    times = [entry["ms"]["median"] for entry in found["family"]]
    lines = []
    for method, runs in found["methods"].items():
        means = [mean(column) for column in zip(*(run["metrics"] for run in runs), strict=True)]
        points = tuple(zip(times, means, strict=False))
        told = tuple(f"{method}, {k} removed: {value:.3f} at {time:.2f} ms" for k, (time, value) in enumerate(points))  # fmt: skip
        lines.append(Line(method, points, True, "dot", told))
    asked = lines[0].points[-1]
    words = f"without {len(lines[0].points) - 1}"
    lines.append(Line("asked for", (asked,), False, "chosen", (words,), (words,)))
    left = f"without {len(times) - 1} it takes {times[-1]:.2f} ms of {times[0]:.2f}"
    summary = f"From right to left one more layer is gone at each mark; {left}."
    labels = f"ms at {report.describe_point(found['point'])}", f"{found['metric']} on dev"
    return chart(f"{found['metric'].capitalize()} against latency", summary, labels, lines)


def _costs(found: Mapping[str, Any]) -> Chart:
    first = found["family"][0]
    shares = {
        "latency": [entry["ms"]["median"] / first["ms"]["median"] for entry in found["family"]],
        "parameters": [entry["parameters"] / first["parameters"] for entry in found["family"]],
    }
    lines = [Line(name, tuple(enumerate(values)), True, "dot") for name, values in shares.items()]
    time, size = shares["latency"][-1], shares["parameters"][-1]
    without = f"Without {len(found['family']) - 1} layers"
    summary = f"{without} {time:.1%} of the time and {size:.1%} of the parameters are left."
    labels = "removed layers", "share of the whole model"
    return chart("What each further layer saves", summary, labels, lines, ends=(0.0, None))
