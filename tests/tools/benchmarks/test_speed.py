import threading

import torch

from fxprune.tools.benchmarks.peak_memory import Peak
from fxprune.tools.benchmarks.speed_page import render_speed

DENSE = {
    "subject": "minilm",
    "kind": "dense",
    "metric": 0.82,
    "levels": {"disable": 100.0, "all": 120.0},
}
METHOD = {
    "subject": "minilm",
    "kind": "method",
    "speed": 2.0,
    "method": "fxprune",
    "metric": 0.81,
    "flop_ratio": 2.1,
    "speedup": 2.05,
}
COUNTS = {"attention": 6, "gelu": 6, "normalisation": 13, "nodes": 199}


def test_the_page_says_what_was_lost() -> None:
    text = render_speed([DENSE, METHOD])
    assert "| 2× | fxprune | 2.05× | 2.10× | 81.00 | -1.00 |" in text
    assert "disable 100.0 ms, all 120.0 ms; all speedups are against the best, `disable`" in text


def test_the_page_says_how_far_predictions_were_off() -> None:
    trials = [{"predicted": 0.52, "measured": 0.50}, {"predicted": 0.50, "measured": 0.50}]
    entry = {
        "subject": "minilm",
        "kind": "trials",
        "speed": 2.0,
        "score": "obs",
        "trials": trials,
        "seconds": 70.0,
        "memory": {"scoring": 50_000_000},
        "model_bytes": 100_000_000,
    }
    text = render_speed([DENSE, METHOD, entry])
    assert "of 2 plans: median error 2.0%, worst 4.0%" in text
    assert "2×: 70 s" in text
    assert "scoring 0.5" in text


def test_the_page_compares_fusions() -> None:
    entry = {"subject": "minilm", "kind": "fusions", "speed": 2.0, "before": COUNTS, "after": COUNTS}
    assert "6 attention, 6 gelu, 13 normalisation; as many in every slim file" in render_speed([DENSE, entry])
    fewer = {**entry, "after": {**COUNTS, "gelu": 5}}
    assert "in the slim files [{'attention': 6, 'gelu': 5" in render_speed([DENSE, fewer])


def test_memory_is_told_by_phase() -> None:
    peak = Peak()
    before = threading.active_count()
    with peak:
        peak.phase("filling 64 MB")
        held = torch.ones(16_000_000)  # in one piece: the allocator has no freed memory of that size to give
        threading.Event().wait(0.2)
        assert len(held) == 16_000_000
    assert peak.growth["filling"] > 40_000_000
    assert threading.active_count() == before
