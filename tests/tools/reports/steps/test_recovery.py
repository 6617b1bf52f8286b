"""Report of a recovery: a sentence on what it brought, what was chosen, and the held-back loss against time."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from fxprune.tools.reports.report_html import render_report
from fxprune.tools.reports.run_report import report_grids
from fxprune.tools.reports.steps.recovery import RecoveryReport, recovery_reports
from support.drawn import REPORT, read

TEXT = "recover(minutes=2)"
DETAILS: dict[str, Any] = {
    "rate": 0.003,
    "precision": "bf16",
    "batch_statistics": False,
    "statistics": {"before": 0.4, "after": 0.3, "kept": True},
    "tried": [{"rate": rate, "batch_statistics": False, "loss": 1.0} for rate in (1e-3, 3e-3, 1e-2)],
    "steps": 90,
    "history": [
        {"step": 0, "seconds": 12.0, "progress": 0.0, "loss": 0.3},
        {"step": 50, "seconds": 66.0, "progress": 0.5, "loss": 0.1},
        {"step": 100, "seconds": 120.0, "progress": 1.0, "loss": 0.2},
    ],
    "resumed": 0,
    "anew": "",
    "before": 0.4,
    "after": 0.1,
    "matched": ["conv1", "conv2", "conv3"],
    "outputs": {"boxes": "square", "ids": ""},
    "own_distance": False,
    "images": ["pixels"],
    "kept": True,
}


def reported(**more: Any) -> RecoveryReport:
    (found,) = recovery_reports(
        [{"text": "fold", "details": {}}, {"text": TEXT, "details": {"recovery": DETAILS | more}}]
    )
    return found


def values(found: RecoveryReport) -> dict[str, str]:
    return {row[0]: row[1] for row in found.grid.rows}


def test_a_table_says_what_was_chosen_and_what_it_brought() -> None:
    found = reported()
    assert found.grid.title == "What recover(minutes=2) learned"
    assert values(found) == {
        "result": "75% of the gap to the original closed: held-back loss 0.4 → 0.1",
        "minutes": "2.0; the best moment after 1.1",
        "steps": "100; the best moment after 50",
        "learning rate": "0.003, the best of 3 tried",
        "precision": "mixed, bfloat16",
        "batch norms": "trained with running statistics; estimated anew first (held-back loss 0.4 → 0.3)",
        "augmented images": "pixels",
        "output boxes": "square: squared difference over the variance of the original's values",
        "output ids": "not compared",
        "values inside": "3 matched: conv1, conv2, …",
    }


def test_the_curve_has_its_start_and_its_best_moment() -> None:
    found = reported()
    assert found.chart is not None
    assert found.curve is not None
    assert [line.label for line in found.chart.lines] == [
        "held-back loss",
        "start",
        "the original",
        "best moment",
    ]
    assert found.chart.lines[3].points == (found.chart.lines[0].points[2],)
    assert found.chart.labels == ("minutes", "held-back loss")
    assert found.chart.lines[2].points[0][1] == found.chart.frame[3]  # 0 lies on the axis
    assert found.curve.rows[0] == ("0.0", "0", "0.4", "0%")
    assert found.curve.rows[2] == ("1.1", "50", "0.1", "75%")


def test_what_improved_nothing_and_what_was_not_trained_have_a_sentence() -> None:
    same = "nothing improved, and the program stays as it was"
    assert reported(kept=False).grid.rows[0] == ("result", same)
    fell = reported(kept=False, metric=[0.9, 0.8]).grid.rows[0][1]
    assert fell == "the program stays as it was: the metric fell from 0.9 to 0.8 (held-back loss 0.4 → 0.1)"
    bare = {"why": "the program already says what the original says", "before": 0.0, "after": 0.0}
    more = {"outputs": {"x": "square"}, "matched": [], "images": [], "own_distance": True}
    (found,) = recovery_reports([{"text": TEXT, "details": {"recovery": {**bare, **more}}}])
    assert found.chart is None
    assert found.grid.rows == (("result", bare["why"]), ("output x", "the distance that the user gave"))
    assert (
        values(reported(anew="the checkpoint is of another cut"))["began anew"]
        == "the checkpoint is of another cut"
    )
    assert values(reported(resumed=20))["went on"] == "at step 20, from a checkpoint"


def test_the_page_draws_it_and_a_loss_that_is_no_number_is_left_out() -> None:
    data = deepcopy(REPORT)
    steps = json.loads(json.dumps([{"text": TEXT, "details": {"recovery": DETAILS}}]))
    data["steps"] += steps
    page = read(render_report(data))
    assert "How recover(minutes=2) came closer to the original" in page.text
    assert "75% of the gap to the original closed" in page.text
    assert "What recover(minutes=2) learned" in [grid.title for grid in report_grids(data)]
    broken = reported(
        history=[*DETAILS["history"], {"step": 120, "seconds": 130.0, "progress": 1.0, "loss": float("inf")}]
    )
    assert broken.chart is not None
    assert len(broken.chart.lines[0].points) == 4
