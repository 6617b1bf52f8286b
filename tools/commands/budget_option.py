"""`--target` and `--calibration`: add a budget to a pipeline, and give its passes data and the settings of the runtime."""

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from fxprune.calibration import Calibration
from fxprune.cost import BUDGETS
from fxprune.errors import UsageError
from fxprune.ir import Point, Program
from fxprune.passes import Lowrank, Slim
from fxprune.pipeline import Pass, Pipeline
from fxprune.tools.commands.bench import settings
from fxprune.tools.inputs.calibration_files import read_calibration
from fxprune.tools.inputs.loaded import Loaded

_ROWS, _LENGTH = 512, 128

MEASURING = (Slim, Lowrank)
"""Passes that measure on the runtime."""


def add_budget_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of budgets and calibration data."""
    group = parser.add_argument_group(
        "budget", "slim to a share of what the model costs now, without training"
    )
    ways = "; ".join(f"{name}: {row.help}" for name, row in BUDGETS.items())
    group.add_argument(
        "--target", metavar="NAME=SHARE", help=f"as in latency=0.5, for slim(latency=0.5) at the end. {ways}"
    )
    group.add_argument(
        "--calibration",
        metavar="FILE",
        help="unlabelled inputs: text (one a line), .npz or .safetensors by input name, or py:PACKAGE.MODULE:FUNCTION",
    )
    group.add_argument(
        "--rows", type=int, default=_ROWS, metavar="N", help=f"read so many of them ({_ROWS}; 0: all)"
    )
    group.add_argument(
        "--length", type=int, default=_LENGTH, metavar="N", help=f"cut texts to so many tokens ({_LENGTH})"
    )


def extend_pipeline(steps: Pipeline, options: argparse.Namespace) -> Pipeline:
    """Return the pipeline with `--target` as a pass at its end; measuring passes use runtime, threads and level of the command line."""
    chosen = settings(options)
    names = {"threads": chosen.threads, "runtime": chosen.runtime, "optimization": chosen.optimization}
    passes = [_with_settings(each, names) for each in steps.passes]
    if options.target:
        budget, share = _target(options.target)
        passes.append(Slim(**{budget: share}, **names))  # type: ignore[arg-type]
    return Pipeline(tuple(passes))


def _with_settings(each: Pass, names: Mapping[str, Any]) -> Pass:
    """Return a measuring pass with the settings of the command line where its own are the defaults."""
    if not isinstance(each, MEASURING):
        return each
    usual = {field.name: field.default for field in fields(each)}
    return replace(
        each, **{name: value for name, value in names.items() if getattr(each, name) == usual[name]}
    )


def _target(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        number = float(share)
    except ValueError:
        number = 0.0
    if name not in BUDGETS or not 0 < number < 1:
        raise UsageError(
            f"--target {text}: expected one of {', '.join(BUDGETS)}, =, and the share that may be left, as in latency=0.5"
        )
    return name, number


def read_calibration_option(
    options: argparse.Namespace, program: Program, loaded: Loaded
) -> Calibration | None:
    """Return the calibration data, checked, or None without the option; UsageError describes what does not fit."""
    if not options.calibration:
        return None
    return read_calibration(options.calibration, program, loaded, options.rows, options.length)


def budget_points(steps: Pipeline, program: Program) -> list[Point]:
    """Return the points that latency budgets refer to, so that the report measures there, too."""
    return [each.point(program) for each in steps.passes if isinstance(each, MEASURING) and each.latency]
