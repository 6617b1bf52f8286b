"""report.html: one file that needs nothing else, every layer, bars in proportion, the chosen plan, source lines; all text escaped."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fxprune.tools.reports import (
    layers_report,
    train_report,
)
from fxprune.tools.reports.charts import MOST_POINTS, Line, chart, decades, ticks
from fxprune.tools.reports.layer_bars import layer_rows
from fxprune.tools.reports.report_html import render_report
from fxprune.tools.reports.templates import Source, breakable, source
from support.drawn import NASTY, REPORT, Reader, axis, layer, read, timing


@pytest.fixture(scope="module")
def drawn() -> Reader:
    return read(render_report(REPORT))


def test_what_comes_from_a_model_is_escaped(drawn: Reader) -> None:
    text = render_report(REPORT)
    assert "<b>&" not in text
    assert "<i>an output" not in text
    assert drawn.text.count(NASTY) == 2
    assert "<i>an output</i> of the graph" in drawn.text


def test_sizes_stand_beside_bars_in_proportion(drawn: Reader) -> None:
    assert "Speed 2.50× 20.00 ms → 8.00 ms at batch 8" in drawn.text
    assert "model.onnx left 60.0% 5.00 kB → 3.00 kB" in drawn.text
    assert "batch 8 2.00× fewer operations 20.00 ms 8.00 ms" in drawn.text
    pairs = list(zip(drawn.widths("was"), drawn.widths("is"), strict=True))
    assert pairs[:2] == [(100, 75), (100, 40)]
    assert pairs[2:6] == [(100, 60), (100, 60), (100, 60), (100, 50)]
    assert pairs[6:] == [(100, 75), (50, 0)]  # layers, against the heaviest


def test_each_layer_says_what_is_left(drawn: Reader) -> None:
    for words in (
        "layer.0",
        "layer.1 removed",
        "outside of layers",
        "3 of 4",
        "48 of 64",
        "0 of 32",
        "? of 16",
        "400 → 300",
    ):
        assert words in drawn.text
    assert drawn.widths("track") == [100, 50, 100]
    labels = [given["aria-label"] for given in drawn.with_class("axis")]
    assert labels == [
        "heads: 3 of 4 left; without 1",
        "ffn: 48 of 64 left",
        "ffn: 0 of 32 left",
        "hidden: what is left of 16 can't be told",
    ]
    assert [tag for tag, _ in drawn.tags if tag in ("i", "b")] == ["i", "b", "i", "i"]


def test_the_chosen_plan_stands_on_the_curve(drawn: Reader) -> None:
    assert (
        "leaves 0.480 of the original's latency where 0.5 was asked for, at a predicted error of 0.25"
        in drawn.text
    )
    (chosen,) = drawn.with_class("chosen")[:1]
    curve = drawn.with_class("curve")[0]["points"].split()
    x, y = map(float, re.findall(r"[\d.]+", chosen["d"])[:2])
    (left, low), (right, high) = (tuple(map(float, point.split(","))) for point in (curve[0], curve[1]))
    assert left < x < right
    assert low < y + 8.5 < high  # an error between the two
    assert "best plans, as predicted tried, as measured asked for chosen, as measured" in drawn.text
    assert "plan 1: 0.560 left, error 0.2" in drawn.text


def test_a_run_without_a_search_has_no_curve() -> None:
    plain = read(render_report({**REPORT, "steps": [{"text": "fold", "details": {}}]}))
    assert not [tag for tag, _ in plain.tags if tag == "figure"]


def test_a_refusal_shows_the_source_line(drawn: Reader) -> None:
    assert "somebody/model.py:12 in forward return x < y & z" in drawn.text
    assert "no source line: the graph's node x" in drawn.text
    assert "dim 0 of head.0.weight and 4 others" in drawn.text
    assert "dim 0 of head.4.weight" in drawn.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b c.py:7 in forward: x = y: z", Source("/a/b c.py:7", "forward", "x = y: z")),
        ("a.py:7 in <lambda>: ", Source("a.py:7", "<lambda>", "")),
        ("", None),
    ],
)
def test_source_lines_are_taken_apart(text: str, expected: Source | None) -> None:
    assert source(text) == expected


def test_names_break_and_numbers_do_not() -> None:
    assert (
        breakable("layer.0.up_proj, 15.1 s/7.8e-07")
        == "layer.\u200b0.\u200bup_\u200bproj, 15.1 s/\u200b7.8e-07"
    )


def test_ranks_and_heads_of_unequal_dims_are_drawn() -> None:
    axes = [axis("l.0.q.rank", "rank", "l.0", 32, 8), axis("l.0.qk", "qk", "l.0", 10, 15, dims=[10, 5, 0])]
    left = layer_rows([layer("l.0", 10, 5)], axes)
    assert left.columns == (("qk", "query/key dims"), ("rank", "ranks"))
    (dims,), (rank,) = left.rows[0].cells
    assert (dims.text, dims.heights, rank.text, rank.fill) == ("15 of 30", (100, 50, 0), "8 of 32", 25)


def test_a_net_without_layers_has_a_row_for_each_axis() -> None:
    left = layer_rows(
        [layer("", 10, 5)],
        [axis("stem.channels", "channels", "", 8, 4), axis("channels", "channels", "", 16, 16)],
    )
    assert [(row.name, row.cells[0][0].track, row.cells[0][0].fill) for row in left.rows] == [
        ("stem.channels", 50, 50),
        ("channels", 100, 100),
    ]
    assert not left.counted


def test_charts_keep_proportions_and_forget_what_nobody_sees() -> None:
    line = Line("a", tuple((float(i), 2.0 * i) for i in range(1000)))
    drawn = chart("t", "s", ("x", "y"), [line])
    (points,) = (each.points for each in drawn.lines)
    assert len(points) <= MOST_POINTS + 1
    assert points[0][0] < points[-1][0]
    assert points[0][1] > points[-1][1]
    (x0, y0), (x1, y1), (x2, y2) = points[0], points[100], points[-1]
    assert (x1 - x0) / (x2 - x0) == pytest.approx((y1 - y0) / (y2 - y0), abs=0.01)
    logs = chart("t", "s", ("x", "y"), [Line("a", ((0, 0.0), (1, 1.0), (2, 10.0), (3, 100.0)))], log=True)
    ys = [y for _, y in logs.lines[0].points]
    assert len(ys) == 3
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)


def test_of_a_loss_that_is_no_number_nothing_is_drawn() -> None:
    history = [entry | {"loss": float("nan")} for entry in TRAINED["history"]]
    drawn = read(train_report.render_training({**TRAINED, "history": history}))
    lines = [given["points"].split() for tag, given in drawn.tags if tag == "polyline"]
    assert [len(points) for points in lines] == [3, 2, 2, 0]


def test_ticks_are_round_numbers() -> None:
    assert ticks(0.27, 1.03) == [0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 300) == [0, 50, 100, 150, 200, 250, 300]
    assert decades(0.004, 12) == [0.01, 0.1, 1, 10]
    assert decades(1, 8) == [1, 2, 5, 10]


TRAINED: dict[str, Any] = {
    **REPORT,
    "task": "text-classification",
    "data": "CoLA",
    "rows": [90, 10],
    "recipe": {"epochs": 1, "learning_rate": 1e-3, "batch_size": 8, "precision": "fp32", "seed": 0},
    "teacher": {"model": "m", "matthews": 0.5},
    "student": {"matthews": 0.4},
    "lower_is_better": False,
    "density": 0.25,
    "lowering": "pad",
    "history": [
        {"step": 5, "loss": 2.0, "density": 1.0},
        {"step": 10, "loss": 1.0, "density": 0.5, "matthews": 0.3},
        {"step": 15, "loss": 0.5, "density": 0.25, "matthews": 0.4},
    ],
    "left": [{"axis": "layer.0.qk", "role": "qk", "within": "layer.0.heads", "of": 8, "open": [8, 0, 4, 2]}],
    "heads": {"layer.0.heads": [0, 2, 3]},
    "proved": {"lowered": 2e-7, "onnx": 1e-6},
}


def test_a_training_shows_density_and_metric_over_time_and_the_dims_of_heads() -> None:
    drawn = read(train_report.render_training(TRAINED))
    assert "Matthews on dev 0.4 the teacher has 0.5" in drawn.text
    assert "After 15 steps the density of what has gates is 0.25." in drawn.text
    assert "Proof 1.0e-06 the largest relative difference of 2 claims" in drawn.text
    assert "step 10: matthews 0.3" in drawn.text
    assert "14 of 32" in drawn.text
    heights = [given["style"] for _, given in drawn.tags if given.get("style", "").startswith("height:")]
    assert heights == ["height:100%", "height:0%", "height:50%", "height:25%"]
    assert len([tag for tag, _ in drawn.tags if tag == "figure"]) == 2


def test_a_metric_of_which_less_is_better_has_its_own_chart() -> None:
    drawn = read(train_report.render_training({**TRAINED, "lower_is_better": True}))
    assert "Metric over time; less is better" in drawn.text
    assert len([tag for tag, _ in drawn.tags if tag == "figure"]) == 3


def test_a_search_for_layers_shows_the_metric_against_time() -> None:
    run = {"seed": 0, "order": ["layer.1"], "scores": [0.7], "evaluations": 2, "metrics": [0.8, 0.7]}
    found: dict[str, Any] = {
        "model": NASTY, "data": "CoLA", "metric": "matthews", "seeds": [0], "rows": {"searched": 9, "held_back": 1, "dev": 5},
        "recipe": TRAINED["recipe"], "methods": {"greedy": [run]}, "exhaustive": [], "point": {"batch": 8},
        "family": [{"removed": [], "parameters": 100, "ms": timing(10.0)}, {"removed": ["layer.1"], "parameters": 60, "ms": timing(6.0)}],
        "session": REPORT["session"], "machine": REPORT["machine"],
    }  # fmt: skip
    drawn = read(layers_report.render_layers(found))
    assert (
        "Without 1 of the layers 0.700 matthews on dev, chosen by greedy; with all of them 0.800"
        in drawn.text
    )
    assert "Speed 1.67× 10.00 → 6.00 ms at batch 8" in drawn.text
    assert "greedy, 1 removed: 0.700 at 6.00 ms" in drawn.text
    assert "0 1 removed layers" in drawn.text  # and no half layers
    assert "Without 1 layers 60.0% of the time and 60.0% of the parameters are left." in drawn.text
