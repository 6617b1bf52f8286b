"""Data for a pipeline: each of its passes gets what it can use, and somebody to tell what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from fxprune.calibration.data import Calibration
from fxprune.passes.layers import Layers
from fxprune.passes.lowrank import Lowrank
from fxprune.passes.slim import Slim
from fxprune.pipeline.base import Pass, Pipeline

MEASURING = (Slim, Lowrank)


def needs_data(steps: Pipeline) -> bool:
    """Whether some pass takes calibration data."""
    return any(field.name == "data" for each in steps.passes for field in fields(each))


def fed(steps: Pipeline, data: Calibration | None, observe: Callable[[str], None]) -> Pipeline:
    """The passes with the data that they can use, and somebody to tell what they do."""
    return Pipeline(tuple(_fed(each, data, observe) for each in steps.passes))


def _fed(each: Pass, data: Calibration | None, observe: Callable[[str], None]) -> Pass:
    names = {field.name for field in fields(each)}
    given: dict[str, Any] = {}
    if data is not None and "data" in names:
        given["data"] = list(data.batches) if isinstance(each, Layers) else data
    if isinstance(each, MEASURING):
        given["observe"] = observe
    return replace(each, **given) if given else each
