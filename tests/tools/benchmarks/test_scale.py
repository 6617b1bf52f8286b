"""The benchmark of scale: a checkpoint made shard by shard, a run from disk, and the page of its figures."""

from pathlib import Path

import pytest

from fxprune.tools.benchmarks.scale import checkpoints
from fxprune.tools.benchmarks.scale.checkpoints import LlamaShape, made_checkpoint
from fxprune.tools.benchmarks.scale.measure import predicted_run, pruned
from fxprune.tools.benchmarks.scale.page import render_scale

pytest.importorskip("transformers")


def test_a_small_shape_is_pruned_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checkpoints.SHAPES, "6 layers", LlamaShape(2, 64, 256, 4, 2, 100))
    monkeypatch.setattr(checkpoints, "_SHARD", 300_000)
    made = made_checkpoint("6 layers", tmp_path)
    assert len([*made.glob("model-*.safetensors")]) > 1
    assert made_checkpoint("6 layers", tmp_path) == made
    found = pruned(made, "slim(params=0.8)", (8, 16, 100), "20GB")
    assert found["on_disk"]
    assert found["left"] == pytest.approx(0.8, abs=0.05)
    assert found["proof"] == "equal"
    assert found["predicted"].startswith("the weights stay on disk: about ")
    record = {"shape": "6 layers", "rows": (8, 16), "memory": "20GB", "pipeline": "slim(params=0.8)"}
    machine = {"python": "3", "processor": "x", "packages": {"torch": "2"}}
    page = render_scale([record | found | {"machine": machine}])
    assert "| 6 layers | 0.00 GB | `slim(params=0.8)` | 8 × 16 | 20GB |" in page


def test_a_shape_is_predicted_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checkpoints.SHAPES, "7B", LlamaShape(8, 512, 1024, 8, 2, 100))
    monkeypatch.setattr("fxprune.tools.benchmarks.scale.measure.SEGMENT_BYTES", 10_000_000)
    found = predicted_run("7B", (8, 16))
    assert found["weights"] == pytest.approx(4 * 8 * (512 * 512 * 2.5 + 3 * 512 * 1024), rel=0.05)
    assert sum(weights for _, weights, _ in found["segments"]) == pytest.approx(found["weights"], rel=0.01)
    assert found["time"] == pytest.approx(sum(seconds for *_, seconds in found["segments"]))
    assert found["memory"] > 100e6
    record = {"shape": "7B", "rows": (8, 16), "memory": "6GB", "pipeline": ""}
    machine = {"python": "3", "processor": "x", "packages": {"torch": "2"}}
    page = render_scale([record | found | {"machine": machine}])
    assert "## 7B: predicted" in page
    assert "Scores and re-fits on 8 × 16 tokens would take about" in page
