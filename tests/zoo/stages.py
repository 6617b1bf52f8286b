"""Stages of one architecture: `check`, then the order of constraints, then ONNX Runtime; a stage may run out of time alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from fxprune.ir import Program
from zoo.check import Build, Outcome, check_with_model, describe_error, halved
from zoo.onnx_check import FAILS, Agreement, agreement
from zoo.shuffled import same_axes

SEEDS = range(3)
SAME = "same"


def stages(name: str, build: Build, dynamic: bool, onnx: bool) -> Iterator[Outcome]:
    """Yield the outcome after each stage; a crash of a check is an outcome, too."""
    outcome, made = check_with_model(name, build, dynamic)
    yield outcome
    if made is None or outcome.status != "ok":
        return
    model, program = made
    outcome = _in_any_order(program, outcome)
    yield outcome
    if onnx:
        yield _in_onnx(model, program, outcome)


def _in_any_order(program: Program, outcome: Outcome) -> Outcome:
    start = time.perf_counter()
    try:
        seeds = [str(seed) for seed in SEEDS if not same_axes(program, seed)]
        order = f"other axes with seed {', '.join(seeds)}" if seeds else SAME
    except Exception as error:  # noqa: BLE001 (a crash of ours is an outcome too)
        order = describe_error(error)
    return replace(outcome, order=order, seconds={**outcome.seconds, "order": _since(start)})


def _in_onnx(model: nn.Module, program: Program, outcome: Outcome) -> Outcome:
    start = time.perf_counter()
    try:
        found = agreement(program.module() if program.islands else model, program, halved(program))
    except Exception as error:  # noqa: BLE001 (likewise)
        found = Agreement(FAILS, describe_error(error))
    return replace(
        outcome,
        onnx=found.said,
        onnx_reason=found.reason,
        onnx_relative=found.relative,
        onnx_shapes=found.shapes,
        seconds={**outcome.seconds, "onnx": _since(start)},
    )


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)
