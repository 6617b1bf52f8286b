"""Context of a pipeline: the calibration data and the progress callback, given to the passes that take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from fxprune.calibration import Calibration
from fxprune.pipeline.base import Pass
from fxprune.pipeline.run import Pipeline


def needs_data(steps: Pipeline) -> bool:
    """Whether some pass takes calibration data."""
    return any(field.name == "data" for each in steps.passes for field in fields(each))


def with_data(steps: Pipeline, data: Calibration | None, observe: Callable[[str], None]) -> Pipeline:
    """Return the pipeline with calibration data and a progress callback in the passes that take them."""
    return Pipeline(tuple(_fed(each, data, observe) for each in steps.passes))


def _fed(each: Pass, data: Calibration | None, observe: Callable[[str], None]) -> Pass:
    options = {field.name: field for field in fields(each)}
    given: dict[str, Any] = {}
    if data is not None and "data" in options:
        given["data"] = list(data.batches) if options["data"].metadata.get("batches") else data
    if "observe" in options:
        given["observe"] = observe
    return replace(each, **given) if given else each
