"""Pages of the ablation and low-rank benchmarks: a table for each task or subject, a row for each method."""

from __future__ import annotations

from typing import Any

from fxprune.tools.benchmarks.ablation_page import render_ablation
from fxprune.tools.benchmarks.low_rank import render_low_rank
from fxprune.tools.reports import report

MACHINE = {"python": "3.11", "processor": "a processor", "packages": {"torch": "2.13"}}
RECIPE = {"epochs": 5, "learning_rate": 1e-4, "batch_size": 32, "precision": "bf16"}
TEACHER = {
    "task": "CoLA",
    "measure": "matthews",
    "variant": "teacher",
    "metric": 0.5,
    "rows": [90, 10],
    "recipe": RECIPE,
}


def student(variant: str, metric: float, seed: int, **more: Any) -> dict[str, Any]:
    return {"task": "CoLA", "measure": "matthews", "variant": variant, "density": 0.25, "seed": seed, "metric": metric,
            "recipe": RECIPE, "heads": [[3, 1], [2]], "neurons": [5]} | more  # fmt: skip


def timed(variant: str, **more: Any) -> dict[str, Any]:
    return {"task": "CoLA", "variant": variant, "density": 0.25, "seed": 0, "speedup": 2.0, "parameters": 3_000_000,
            "file_bytes": 12_000_000, "machine": MACHINE, "heads": 7, "zeros": 0.4} | more  # fmt: skip


def test_a_study_of_grain_counts_heads() -> None:
    rows = [TEACHER, student("grain", 0.4, 0), student("grain", 0.2, 1), timed("grain")]
    text = render_ablation("grain", rows, {"grain": "GRAIN"}, "A note.")
    assert "90 rows to train on, 10 to be judged on. The teacher, 5 epochs: matthews 0.500." in text
    assert "| 25% | GRAIN | 2 | 0.300 (0.200–0.400) | 60% | 3 | 3.0 M | 2.00× | 12.0 MB |" in text
    assert "A note." in text
    assert "Measured on a processor with Python 3.11, torch 2.13." in text


def test_a_study_of_blocks_tells_what_stayed_zero() -> None:
    rows = [TEACHER, student("block", 0.4, 0), timed("block"), student("struct", 0.3, 0)]
    text = render_ablation("blocks", rows, {"block": "blocks", "struct": "heads"}, "")
    assert "| 25% | blocks | 1 | 0.400 | 80% | 7 | 40% | 3.0 M | 2.00× | 12.0 MB |" in text
    assert "| 25% | heads | 1 | 0.300 | 60% | – | – | – | – | – |" in text


def test_a_study_of_ranks_counts_them() -> None:
    rows = [TEACHER, student("flop", 0.4, 0, ranks=[10, 20], reached=0.251), student("svd", 0.3, 0)]
    text = render_ablation("ranks", rows, {"flop": "FLOP", "svd": "SVD"}, "")
    assert "| 25% | FLOP | 1 | 0.400 | 80% | 0.251 | 30 | – | – | – |" in text
    assert "| 25% | SVD | 1 | 0.300 | 60% | – | – | – | – | – |" in text


def test_factors_at_equal_speed() -> None:
    made = {"weights": ["a", "b"], "ranks": [4]}
    whole = {"weights": ["c"], "ranks": []}
    row = {"subject": "minilm", "speed": 1.5, "method": "SVD"}
    rows: list[dict[str, Any]] = [
        {"subject": "minilm", "kind": "dense", "metric": 0.82},
        {"subject": "minilm", "kind": "machine", **MACHINE},
        {**row, "kind": "method", "metric": 0.776, "speedup": 1.51, "flop_ratio": 1.7, "bytes": 72_000_000},
        {**row, "kind": "details", "ranks": [made, whole], "parameters": 18_000_000},
    ]
    text = render_low_rank(rows, "")
    assert "## all-MiniLM-L6-v2, STS-benchmark" in text
    assert "| 1.5× | SVD | 77.60 | 1.51× | 1.70× | 18.0 M | 2 of 3 | 72.0 MB |" in text


def test_a_report_tells_what_became_of_matrices() -> None:
    """Queries, keys and values are one row; what is whole says why."""
    shared = {"weights": ["a.weight", "b.weight", "c.weight"], "size": [96, 32], "ranks": [8], "shared": True,
              "missing": 0.05, "dense": 2.0, "factors": 1.25, "why": ""}  # fmt: skip
    whole = {"weights": ["d.weight"], "size": [32, 32], "ranks": [], "shared": False, "missing": 0.0, "dense": 1.0,
             "factors": None, "why": "the budget is met without it"}  # fmt: skip
    (grid,) = report.plans([{"text": "lowrank(rank=8)", "details": {"ranks": [shared, whole]}}])
    assert grid.title == "What lowrank(rank=8) made of matrices"
    assert grid.rows == (
        ("a, b, …", "96 × 32", "one product, 8", "5.0%", "2.00", "1.25"),
        ("d", "32 × 32", "the budget is met without it", "–", "1.00", "–"),
    )
