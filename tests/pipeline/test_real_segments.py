"""Segments at real sizes: MiniLM and SmolLM2, pruned from files in many segments, are what they are in one piece in memory."""

from dataclasses import replace

import pytest
import torch

from fxprune.calibration import check_calibration
from fxprune.calibration.segments import segments_of
from fxprune.errors import UsageError
from fxprune.passes import parse_pipeline
from fxprune.pipeline import Context
from fxprune.tools.benchmarks.subjects import subject


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "segment"), [("minilm", 64, 8_000_000), ("smollm2", 16, 32_000_000)]
)
def test_a_real_model_is_pruned_alike_from_files_and_in_memory(
    name: str, rows: int, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        loaded, batches = subject(name).load(), subject(name).calibration(rows)
    except UsageError as error:
        pytest.skip(str(error))
    program = replace(loaded, model=subject(name).deployed(loaded.model)).capture(())  # type: ignore[arg-type]
    data = check_calibration(program, batches, rows)
    steps = parse_pipeline("slim(params=0.8)")
    whole = steps.run(program, Context(data=data))
    monkeypatch.setattr("fxprune.storage.limits.COPIES", 10**12)
    monkeypatch.setattr("fxprune.calibration.segments.SEGMENT_BYTES", segment)
    assert len(segments_of(program, segment)) > 4
    parts = steps.run(program, Context(data=data))
    assert parts.program.is_mapped()
    assert parts.selection.to_json() == whole.selection.to_json()
    mine, theirs = parts.program.tensors(), whole.program.tensors()
    gaps = {key: _gap(mine[key], value) for key, value in theirs.items() if value.is_floating_point()}
    assert max(gaps.values()) < 1e-3, max(gaps, key=gaps.__getitem__)


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The relative distance of two tensors."""
    return float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30))
