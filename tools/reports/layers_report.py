"""Report of `fxprune layers`, from layers.json: the metric against latency for each number of removed layers, and which go."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fxprune.errors import UsageError
from fxprune.tools.reports import report
from fxprune.tools.reports.charts import Chart, Line, chart
from fxprune.tools.reports.report import Grid
from fxprune.tools.reports.templates import Tile, render

_NEEDS = "the picture of the curve needs matplotlib ({}); install: pip install 'fxprune[train]'"

MARKERS = ("o", "s", "^", "D", "v", "P")  # so that lines differ without colour, too

STYLES = ("-", "--", ":", "-.")

BESIDE = 0.05  # distance between lines, so that the ranges of all are visible


def render_layers(found: Mapping[str, Any]) -> str:
    """Return the whole page, as HTML."""
    return render(
        "layers.html",
        model=found["model"],
        data=found["data"],
        tiles=_tiles(found),
        charts=[_curve(found), _costs(found)],
        grids=curve_grids(found),
        setting=describe_search(found),
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
    """Return a chart with a line for each method; the times are those of the first one's family, whose last member was asked for."""
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
    shares = _shares(found)
    lines = [Line(name, tuple(enumerate(values)), True, "dot") for name, values in shares.items()]
    time, size = shares["latency"][-1], shares["parameters"][-1]
    without = f"Without {len(found['family']) - 1} layers"
    summary = f"{without} {time:.1%} of the time and {size:.1%} of the parameters are left."
    labels = "removed layers", "share of the whole model"
    return chart("What each further layer saves", summary, labels, lines, ends=(0.0, None))


def _shares(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return what is left of latency and parameters, for each number of removed layers."""
    first, family = found["family"][0], found["family"]
    return {
        "latency": [entry["ms"]["median"] / first["ms"]["median"] for entry in family],
        "parameters": [entry["parameters"] / first["parameters"] for entry in family],
    }


def curve_grids(found: Mapping[str, Any]) -> list[Grid]:
    """Return tables: the curve; what each method removes; its rank among all sets, where these were tried."""
    return [_curve_grid(found), _choices(found), *_ranks(found)]


def curve_markdown(found: Mapping[str, Any]) -> str:
    """Return the report as a Markdown page."""
    title = report.markdown_text(f"{found['model']} on {found['data']}: which layers can go")
    head = f"# {title}", "![curve](layers.svg)"
    return report.markdown_page(head, curve_grids(found), (describe_search(found), report.where(found)))


def describe_search(found: Mapping[str, Any]) -> str:
    """Return a text on how the numbers were made."""
    recipe, rows = found["recipe"], found["rows"]
    training = (
        f"{recipe['epochs']} epochs, learning rate {recipe['learning_rate']:g}, batches of {recipe['batch_size']}, "
        f"precision {recipe['precision']}, seeds {', '.join(map(str, found['seeds']))}"
    )
    return (
        f"Searched by the {found['metric']} on {rows['held_back']} rows of train after training on the other {rows['searched']}; "
        f"the curve is that on {rows['dev']} rows of dev after training on all of train. Training: {training}. "
        f"Latency: {report.describe_session(found['session'])}, at {report.describe_point(found['point'])}."
    )


def _curve_grid(found: Mapping[str, Any]) -> Grid:
    """Return one row per number of removed layers: the metric of each method as mean and range over seeds, then size and speed."""
    family = found["family"]
    rows = [
        (
            str(removed),
            *(spread([run["metrics"][removed] for run in runs]) for runs in found["methods"].values()),
            f"{entry['parameters']:,}",
            f"{entry['ms']['median']:.2f}",
            f"{family[0]['ms']['median'] / entry['ms']['median']:.2f}×",
        )
        for removed, entry in enumerate(family)
    ]
    columns = ("removed", *found["methods"], "parameters", "ms", "speedup")
    seeds = len(found["seeds"])
    over = f"mean (lowest–highest) of {seeds} seeds" if seeds > 1 else "one seed"
    return Grid(f"{found['metric'].capitalize()} on dev: {over}", columns, tuple(rows), len(columns))


def spread(values: Sequence[float]) -> str:
    """Return mean and range as text, `0.931 (0.928–0.936)`; one value alone."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _choices(found: Mapping[str, Any]) -> Grid:
    rows = [
        (method, str(run["seed"]), ", ".join(run["order"]), str(run["evaluations"]))
        for method, runs in found["methods"].items()
        for run in runs
    ]
    return Grid("What goes, in order", ("by", "seed", "layers", "evaluations"), tuple(rows), 1)


def _ranks(found: Mapping[str, Any]) -> list[Grid]:
    if not found["exhaustive"]:
        return []
    rows = [
        (
            str(entry["seed"]),
            f"{entry['best']} ({entry['scores'][0]:.3f})",
            *(f"{rank} ({score:.3f})" for rank, score in entry["ranks"].values()),
            f"{entry['scores'][len(entry['scores']) // 2]:.3f}",
            f"{entry['scores'][-1]:.3f}",
        )
        for entry in found["exhaustive"]
    ]
    first = found["exhaustive"][0]
    title = f"Rank among all {len(first['scores'])} sets of {first['size']}, by {found['metric']} on the held-back rows"
    columns = ("seed", "best", *first["ranks"], "median", "worst")
    return [Grid(title, columns, tuple(rows), len(columns) - 2)]


def draw_curve(found: Mapping[str, Any], folder: Path) -> None:
    """Draw layers.svg and layers.png: the metric left, parameters and latency right, both over the number of removed layers."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = list(range(len(found["family"])))
    for place, (method, runs) in enumerate(found["methods"].items()):
        columns = list(zip(*(run["metrics"] for run in runs), strict=True))
        middle = [mean(column) for column in columns]
        below = [mean(column) - min(column) for column in columns]
        above = [max(column) - mean(column) for column in columns]
        line = {"marker": MARKERS[place % len(MARKERS)], "linestyle": STYLES[place % len(STYLES)]}
        beside = [step + BESIDE * (place - (len(found["methods"]) - 1) / 2) for step in steps]
        left.errorbar(beside, middle, yerr=[below, above], label=method, capsize=3, **line)
    left.set(xlabel="removed layers", ylabel=f"{found['metric']} on dev", xticks=steps)
    shares = _shares(found)
    for name, marker in (("parameters", "s"), ("latency", "o")):
        right.plot(steps, shares[name], marker=marker, label=name)
    right.set(xlabel="removed layers", ylabel="share of the whole model", xticks=steps, ylim=(0, 1.05))
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend()
    save_figure(figure, folder / "layers")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib as .svg and .png, and close it."""
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), dpi=150)
    pyplot().close(figure)


def pyplot() -> Any:
    """Return pyplot of matplotlib, drawing into files; UsageError where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UsageError(_NEEDS.format(error)) from error
    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "fxprune"  # the same numbers draw the same file
    from matplotlib import pyplot as plt

    return plt
