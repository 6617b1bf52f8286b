"""Options that several commands share."""

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fxprune.errors import UsageError
from fxprune.runtimes import RUNTIMES
from fxprune.runtimes.peepholes import PEEPHOLES
from fxprune.runtimes.registry import MOST_THREADS
from fxprune.tools.inputs.huggingface import TRUST_OPTION
from fxprune.tools.inputs.loaded import MODEL_FORMS
from fxprune.tools.reports.output_folder import check_output_folder
from fxprune.training import Recipe
from fxprune.training.devices import check_device
from fxprune.training.loop import PRECISIONS

_MOST = 2**31 - 1

#: least and largest value of a number, by option; those of epochs and batch size are known where they are used
RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        **dict.fromkeys(("rows", "recall", "exhaustive"), (0, _MOST)),
        **dict.fromkeys(("count", "workers"), (1, _MOST)),
        **dict.fromkeys(("epochs", "teacher_epochs", "batch_size"), (-_MOST, _MOST)),
        **dict.fromkeys(("learning_rate", "weight_decay", "clip", "save"), (0, 1e9)),
        "warmup": (0, 1),
        "sampling_rate": (1, 10**6),
        "threads": (1, MOST_THREADS),
        "seed": (0, 2**32 - 1),
        "seconds": (1e-3, 86400),
        "length": (0, _MOST),
    }
)

#: number of a recipe: (what it is called in the help, the help around its default)
_NUMBERS = {
    "epochs": ("N", "({:g})"),
    "learning_rate": ("RATE", "({:g})"),
    "batch_size": ("N", "({:g})"),
    "warmup": ("SHARE", "steps with a rising learning rate ({:g})"),
    "weight_decay": ("RATE", "of matrices ({:g})"),
    "clip": ("NORM", "the largest norm of a step's gradients ({:g}; 0: any)"),
}


def add_option(
    parser: argparse._ActionsContainer, flag: str, default: float | str, metavar: str, text: str
) -> None:
    """Add an option with a value, of its default's type."""
    parser.add_argument(flag, type=type(default), default=default, metavar=metavar, help=text)


def recipe(parser: argparse.ArgumentParser, own: Recipe) -> None:
    """Add the options of fine-tuning, with the defaults of a recipe."""
    group = parser.add_argument_group("fine-tuning")
    for name, (metavar, text) in _NUMBERS.items():
        value = getattr(own, name)
        add_option(group, f"--{name.replace('_', '-')}", value, metavar, text.format(value))
    group.add_argument("--precision", choices=PRECISIONS, default=own.precision, help="mixed precision (no)")
    group.add_argument("--device", default=own.device, help="where it is trained: cpu or cuda (cpu)")


def recipe_of(options: argparse.Namespace, epochs: int | None = None, seed: int = 0) -> Recipe:
    """Return the recipe of the options; UsageError where epochs or the batch size are below 1, or there is no such device."""
    if min(options.epochs, options.batch_size) < 1:
        raise UsageError("--epochs and --batch-size must be at least 1")
    if epochs is not None and epochs < 1:
        raise UsageError(f"--teacher-epochs must be at least 1, got {epochs}")
    if options.device:
        check_device(options.device)
    asked = {name: getattr(options, name) for name in (*_NUMBERS, "precision", "device")}
    return Recipe(**asked | {"epochs": epochs or options.epochs, "seed": seed})


def model_argument(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, and `--trust-remote-code`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_FORMS)
    text = "run the Python code that a model folder brings along, if it does: read it first (nothing of a folder runs otherwise)"
    parser.add_argument(TRUST_OPTION, action="store_true", help=text)


def output_options(parser: argparse.ArgumentParser) -> None:
    """Add `--output`, `--force` and `--no-peepholes`."""
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the folder for the results")
    parser.add_argument("--force", action="store_true", help="replace results that are already in OUT")
    forms = "; ".join(f"{row.form}: {row.why}" for row in PEEPHOLES)
    text = f"write files as torch does, not in the forms that the runtime computes faster ({forms})"
    parser.add_argument("--no-peepholes", dest="peepholes", action="store_false", help=text)


def check_values(options: argparse.Namespace, shown: Mapping[str, str]) -> None:
    """Raise UsageError for a number out of its range, and for a text that no file could hold; `shown` is how options are written."""
    for name, value in vars(options).items():
        option = shown.get(name, name)
        for text in value if isinstance(value, list) else [value]:
            _check_text(option, text)
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if isinstance(value, int | float) and not low <= value <= high:
            bound = f"at most {high:.12g}" if value > high else f"at least {low:.12g}"
            raise UsageError(f"{option} must be {bound}, got {_short(value)}")


def _check_text(option: str, text: Any) -> None:
    if isinstance(text, str) and "\0" in text:
        raise UsageError(f"{option} has a zero byte: {text[:80]!r}")
    if isinstance(text, str) and any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"{option} is no text in UTF-8: {text[:80]!r}")


def _short(value: float) -> str:
    """Return a number as text, in short: Python refuses to print an integer of thousands of digits."""
    return str(value) if isinstance(value, float) or abs(value) < 2**64 else "a larger number"


def session_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the runtime that files are measured on, and `--json`."""
    ways = "; ".join(f"{name}: {row.help}" for name, row in RUNTIMES.items() if row.suffix == ".onnx")
    text = f"what runs the files that are measured (onnxruntime). {ways}"
    add_option(parser, "--runtime", "onnxruntime", "NAME", text)
    add_option(parser, "--threads", 1, "N", "threads of the runtime (1)")
    levels, text = (
        ("disable", "basic", "extended", "all"),
        "graph optimisation level of ONNX Runtime (all, its own default)",
    )
    parser.add_argument("--optimization", choices=levels, default="all", help=text)
    json_option(parser)


def check_output(options: argparse.Namespace) -> Path:
    """Return the folder for the results; UsageError, before any work, where they could not be placed, or would replace an input."""
    target = Path(options.output)
    check_output_folder(target, options.force, _inputs(options))
    return target


def _inputs(options: argparse.Namespace) -> Iterator[Path]:
    """Yield the files and folders that a command reads."""
    for name in ("model", "teacher", "tokenizer", "data", "calibration", "held_back", "tokens", "selection"):
        text = getattr(options, name, None)
        if text and not text.startswith("py:") and "\0" not in text:
            yield Path(text.removeprefix("hf:").partition("#")[0] if text.startswith("hf:") else text)


def json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
