"""`--target`, `--calibration` and `--held-back`: a budget at the end of a pipeline, and calibration data."""

import argparse
import re
from pathlib import Path
from typing import Any

from fxprune.calibration import Calibration
from fxprune.calibration.processes import is_first_process, process_count
from fxprune.cost import BUDGETS
from fxprune.errors import UsageError
from fxprune.ir import Point, Program
from fxprune.passes import Recover, Slim, parse_pipeline
from fxprune.pipeline import Context, Pipeline
from fxprune.runtimes import Settings
from fxprune.storage.limits import parse_bytes
from fxprune.tools.commands.run_folder import add_run_options, check_run_folder, run_folder
from fxprune.tools.inputs.calibration.forms import FORMS, check_source, read_calibration
from fxprune.tools.inputs.calibration.normalization import NORMALIZATIONS
from fxprune.tools.inputs.calibration.request import NORMALIZATION_OPTION, SAMPLING_OPTION, Asked
from fxprune.tools.inputs.loaded import Loaded
from fxprune.tools.inputs.metrics import own_metric
from fxprune.training.checkpoint_files import check_snapshots
from fxprune.training.devices import check_device

_ROWS, _LENGTH = 512, 128

#: Options that a run must have in common with the one whose folder of checkpoints it resumes; it may take more time.
_SAME = (
    *(
        "model",
        "pipeline",
        "target",
        "calibration",
        "held_back",
        "rows",
        "length",
        "image_normalization",
        "sampling_rate",
    ),
    *("free_output", "within", "runtime", "threads", "optimization", "device", "trust_remote_code"),
)

MEMORY_OPTION = "--memory"

#: unit of time: its minutes
_MINUTES = {"s": 1 / 60, "min": 1.0, "h": 60.0}


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
        "--recover",
        metavar="TIME",
        help="then train what is left to say what the model says, without labels, as in 10min, 90s, 1h or 500steps,"
        " for recover(minutes=10) at the end",
    )
    add_run_options(group)
    group.add_argument(
        MEMORY_OPTION,
        default="",
        metavar="SIZE",
        help="memory that may be used, as in 6GB; a model of which several copies don't fit is pruned from temporary files (what is free)",
    )
    group.add_argument(
        "--device", default="", help="where calibration, re-fits and a recovery compute: cpu or cuda (cpu)"
    )
    text = (
        "your own measure of a model, higher is better, in the report before and after; a recovery must not lower it: a function of the"
        " model that returns a number"
    )
    group.add_argument("--metric", metavar="py:MODULE:FUNCTION", default="", help=text)
    group.add_argument(
        "--calibration",
        metavar="DATA",
        help=f"unlabelled inputs. {'; '.join(f'{form.written}: {form.help}' for form in FORMS)}",
    )
    group.add_argument(
        "--held-back",
        metavar="DATA",
        help="further inputs, of another kind than these but read as they are, on which fits are judged in place of some of them",
    )
    presets = "; ".join(f"{name}: {row.help}" for name, row in NORMALIZATIONS.items())
    group.add_argument(
        NORMALIZATION_OPTION,
        default="",
        metavar="NUMBERS",
        help=f"of images, on a scale from 0 to 1 (the model's own; else imagenet for three channels, none for one). {presets}",
    )
    group.add_argument(
        SAMPLING_OPTION,
        type=int,
        metavar="N",
        help="samples a second that sounds are resampled to (the model's own)",
    )
    group.add_argument(
        "--rows", type=int, default=_ROWS, metavar="N", help=f"read so many of them ({_ROWS}; 0: all)"
    )
    group.add_argument(
        "--length", type=int, default=_LENGTH, metavar="N", help=f"cut texts to so many tokens ({_LENGTH})"
    )


def memory_of(options: argparse.Namespace) -> int:
    """Return the bytes of `--memory`, 0 where it is not given; UsageError where it is no size."""
    text = getattr(options, "memory", "")
    try:
        return parse_bytes(text) if text else 0
    except UsageError as error:
        raise UsageError(f"{MEMORY_OPTION} {text}: {error}") from None


def budgeted_pipeline(options: argparse.Namespace) -> Pipeline:
    """Return the pipeline of `--pipeline`, with `--target` and `--recover` as passes at its end."""
    passes = parse_pipeline(options.pipeline).passes if options.pipeline else ()
    if options.target:
        budget, share = _target(options.target)
        passes = (*passes, Slim(**{budget: share}))  # type: ignore[arg-type]
    if options.recover:
        passes = (*passes, _recover(options.recover))
    return Pipeline(passes)


def _recover(text: str) -> Recover:
    found = re.fullmatch(r"(\d+\.?\d*) ?([a-z]+)", text.strip())
    number, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if unit in _MINUTES and number > 0:
        return Recover(minutes=number * _MINUTES[unit])
    if unit == "steps" and number >= 1:
        return Recover(steps=int(number))
    raise UsageError(
        f"--recover {text}: expected a time or a number of steps above 0, as in 10min, 90s, 1h or 500steps"
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


def check_training_options(options: argparse.Namespace, steps: Pipeline) -> bool:
    """Return whether some pass trains; UsageError for training options without one, and for an unusable device, folder or metric."""
    if options.device:
        check_device(options.device)
    if options.metric:
        own_metric(options.metric)
    trains = steps.expanded().uses("checkpoints")
    if options.device and not (trains or options.calibration):
        raise UsageError(
            f"--device {options.device} is for what computes on data, and {str(steps)!r} has none: give --calibration DATA"
        )
    for option in ("run", "restart"):
        value = getattr(options, option)
        if value and not (trains or options.calibration):
            told = f"--{option}" if value is True else f"--{option} {value}"
            raise UsageError(
                f"{told} is for passes that train, and {str(steps)!r} has none: give --recover 10min"
            )
    if not (trains or any(each.splits for each in steps.passes)) and process_count() > 1:
        raise UsageError(
            f"{process_count()} processes run this, and {str(steps)!r} has no pass that trains or calibrates in several"
        )
    if trains and is_first_process():
        check_run_folder(*run_of(options))
        if not options.restart:
            check_snapshots(run_folder(options))
    return trains


def run_of(options: argparse.Namespace) -> tuple[Path, dict[str, Any], bool]:
    """Return the folder of checkpoints, the options that a run must share with the one that wrote them, and whether it begins anew."""
    same = {"command": "run", **{name: getattr(options, name) for name in _SAME}}
    return run_folder(options), same, options.restart


def check_data_options(options: argparse.Namespace) -> None:
    """Raise UsageError where an option says how data are read, and there are none."""
    given = {NORMALIZATION_OPTION: options.image_normalization, SAMPLING_OPTION: options.sampling_rate}
    for option, value in given.items():
        if value and not options.calibration:
            raise UsageError(f"{option} {value} says how calibration data are read: give --calibration DATA")
    if options.held_back and not options.calibration:
        raise UsageError(
            f"--held-back {options.held_back} judges what is fitted on calibration data: give --calibration DATA"
        )
    for asked in asked_data(options):
        check_source(asked, options.model, options.trust_remote_code)


def read_calibration_option(
    options: argparse.Namespace, program: Program, loaded: Loaded
) -> Calibration | None:
    """Return the calibration data, checked, or None without the option; UsageError describes what does not fit."""
    if not options.calibration:
        return None
    data, *held = (read_calibration(asked, program, loaded) for asked in asked_data(options))
    return data.holding(*held) if held else data


def asked_data(options: argparse.Namespace) -> list[Asked]:
    """Return the options of calibration data, and of those that are held back where there are some; none without data."""
    how = (options.rows, options.length, options.image_normalization, options.sampling_rate)
    given = (("--calibration", options.calibration), ("--held-back", options.held_back))
    return [Asked(text, *how, option) for option, text in given if text]


def budget_points(steps: Pipeline, program: Program, settings: Settings) -> list[Point]:
    """Return the points that latency budgets refer to, so that the report measures there, too."""
    context = Context(settings=settings)
    return [point for each in steps.passes for point in each.points(program, context)]
