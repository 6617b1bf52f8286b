"""Options that several commands share."""

import argparse

from fxprune.errors import UsageError
from fxprune.runtimes import RUNTIMES
from fxprune.training import Recipe
from fxprune.training.loop import PRECISIONS


def recipe(parser: argparse.ArgumentParser, own: Recipe) -> None:
    """Add the options of fine-tuning, with the defaults of a recipe."""
    add = parser.add_argument_group("fine-tuning").add_argument
    add("--epochs", type=int, default=own.epochs, metavar="N", help=f"({own.epochs})")
    add(
        "--learning-rate",
        type=float,
        default=own.learning_rate,
        metavar="RATE",
        help=f"({own.learning_rate:g})",
    )
    add("--batch-size", type=int, default=own.batch_size, metavar="N", help=f"({own.batch_size})")
    add(
        "--warmup",
        type=float,
        default=own.warmup,
        metavar="SHARE",
        help=f"steps with a rising learning rate ({own.warmup:g})",
    )
    add(
        "--weight-decay",
        type=float,
        default=own.weight_decay,
        metavar="RATE",
        help=f"of matrices ({own.weight_decay:g})",
    )
    add(
        "--clip",
        type=float,
        default=own.clip,
        metavar="NORM",
        help=f"the largest norm of a step's gradients ({own.clip:g}; 0: any)",
    )
    add("--precision", choices=PRECISIONS, default=own.precision, help="mixed precision (no)")
    add("--device", default=own.device, help="where it is trained: cpu or cuda (cpu)")


def recipe_of(options: argparse.Namespace, epochs: int | None = None, seed: int = 0) -> Recipe:
    """Return the recipe of the options; UsageError where epochs or the batch size are below 1."""
    if min(options.epochs, options.batch_size) < 1:
        raise UsageError("--epochs and --batch-size must be at least 1")
    if epochs is not None and epochs < 1:
        raise UsageError(f"--teacher-epochs must be at least 1, got {epochs}")
    return Recipe(
        options.epochs if epochs is None else epochs,
        options.learning_rate,
        options.batch_size,
        options.warmup,
        options.weight_decay,
        seed,
        options.precision,
        options.clip,
        options.device,
    )


def session_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the runtime that files are measured on."""
    add = parser.add_argument
    ways = "; ".join(f"{name}: {row.help}" for name, row in RUNTIMES.items() if row.suffix == ".onnx")
    add(
        "--runtime",
        default="onnxruntime",
        metavar="NAME",
        help=f"what runs the files that are measured (onnxruntime). {ways}",
    )
    add("--threads", type=int, default=1, metavar="N", help="threads of the runtime (1)")
    add(
        "--optimization",
        choices=("disable", "basic", "extended", "all"),
        default="all",
        help="graph optimisation level of ONNX Runtime (all, its own default)",
    )


def json_option(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
