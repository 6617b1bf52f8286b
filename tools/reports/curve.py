"""The curve of a family of ever smaller models: removed layers against metric, parameters and latency, as tables and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from fxprune.errors import UsageError
from fxprune.tools.reports import report
from fxprune.tools.reports.report import Grid

_NEEDS = "the picture of the curve needs matplotlib ({}); install: pip install 'fxprune[train]'"
MARKERS = ("o", "s", "^", "D", "v", "P")  # lines are told apart without colour, too
STYLES = ("-", "--", ":", "-.")
BESIDE = 0.05  # how far lines stand apart, so that the ranges of all are seen


def curve_grids(found: Mapping[str, Any]) -> list[Grid]:
    """The curve; what each way of choosing removes; where it ranks among all sets, where these were tried."""
    return [_curve(found), _choices(found), *_ranks(found)]


def curve_markdown(found: Mapping[str, Any]) -> str:
    """All of it as a Markdown page."""
    parts = [f"# {found['model']} on {found['data']}: which layers can go", "![curve](layers.svg)"]
    for grid in curve_grids(found):
        parts += [f"## {grid.title}", report.markdown_table(grid)]
    return "\n\n".join([*parts, describe_search(found), report.where(found)]) + "\n"


def describe_search(found: Mapping[str, Any]) -> str:
    """How the numbers were made, in a sentence."""
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


def _curve(found: Mapping[str, Any]) -> Grid:
    """One row a number of removed layers: the metric of each method as mean and range over seeds, then size and speed."""
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
    """`0.931 (0.928–0.936)`; one value alone."""
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
    """layers.svg and layers.png: the metric left, parameters and latency right, both over the number of removed layers."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = list(range(len(found["family"])))
    for place, (method, runs) in enumerate(found["methods"].items()):
        columns = list(zip(*(run["metrics"] for run in runs), strict=True))
        middle = [mean(column) for column in columns]
        ranges = [
            [centre - min(column) for centre, column in zip(middle, columns, strict=True)],
            [max(column) - centre for centre, column in zip(middle, columns, strict=True)],
        ]
        line = {"marker": MARKERS[place % len(MARKERS)], "linestyle": STYLES[place % len(STYLES)]}
        beside = [step + BESIDE * (place - (len(found["methods"]) - 1) / 2) for step in steps]
        left.errorbar(beside, middle, yerr=ranges, label=method, capsize=3, **line)
    left.set(xlabel="removed layers", ylabel=f"{found['metric']} on dev", xticks=steps)
    first = found["family"][0]
    for name, marker, shares in (
        ("parameters", "s", [entry["parameters"] / first["parameters"] for entry in found["family"]]),
        ("latency", "o", [entry["ms"]["median"] / first["ms"]["median"] for entry in found["family"]]),
    ):
        right.plot(steps, shares, marker=marker, label=name)
    right.set(xlabel="removed layers", ylabel="share of the whole model", xticks=steps, ylim=(0, 1.05))
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend()
    for suffix in ("svg", "png"):
        figure.savefig(folder / f"layers.{suffix}", dpi=150)
    plt.close(figure)


def pyplot() -> Any:
    """matplotlib, drawing into files."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UsageError(_NEEDS.format(error)) from error
    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "fxprune"  # the same numbers draw the same file
    from matplotlib import pyplot as plt

    return plt
