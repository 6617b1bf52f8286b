"""Options of `fxprune train`."""

import argparse

from fxprune.gates import LOWERINGS
from fxprune.tools.commands.options import json_option, recipe, session_options
from fxprune.tools.inputs.loaded import MODEL_FORMS
from fxprune.tools.inputs.metrics import METRICS
from fxprune.tools.inputs.tasks import TASKS
from fxprune.training import Recipe

#: GRAIN's defaults, except for the number of epochs, which is 20 there
OWN = Recipe(epochs=10, learning_rate=3e-5, warmup=0.1, weight_decay=0.01, clip=1.0)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add all options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_FORMS)
    _what(parser)
    _data(parser)
    recipe(parser, OWN)
    _teacher(parser)
    _results(parser)
    session_options(parser)
    json_option(parser)


def _what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    ways = "; ".join(f"{name}: {row.help}" for name, row in TASKS.items())
    add("--task", required=True, choices=TASKS, metavar="TASK", help=ways)
    add(
        "-p",
        "--pipeline",
        required=True,
        metavar="TEXT",
        help='one pass that trains, as in "grain(density=0.1)"; passes before it prune the model, those after it what is left',
    )
    add("--metric", default="", metavar="NAME", help=_metrics())
    ways = "; ".join(f"{name}: {what}" for name, (_, what) in LOWERINGS.items())
    add(
        "--lowering",
        choices=("measured", *LOWERINGS),
        default="measured",
        help=f"units of unequal sizes (measured: whichever is fastest on the runtime). {ways}",
    )


def _metrics() -> str:
    ways = "; ".join(f"{name}: {row.help}" for name, row in METRICS.items())
    own = ", ".join(f"{task}: {row.metrics[0]}" for task, row in TASKS.items())
    return f"({own}). {ways}"


def _data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "--data",
        required=True,
        metavar="DIR",
        help="train.* and dev.*: .tsv, .csv, .jsonl, .parquet, .json (SQuAD) or .txt",
    )
    columns = "; ".join(f"{task}: {', '.join(row.columns)}" for task, row in TASKS.items())
    add("--text", default="", metavar="COLUMN", help=f"the first of the task's columns ({columns})")
    add("--second", default="", metavar="COLUMN", help="second texts, or contexts")
    add("--label", default="", metavar="COLUMN", help="classes, tags or answers")
    add(
        "--columns",
        default="",
        metavar="LIST",
        help="the names of all columns, where .tsv or .csv files have no header",
    )
    add("--rows", type=int, default=0, metavar="N", help="use only the first N rows of train (0: all)")
    add("--length", type=int, default=0, metavar="N", help="the most tokens of a row (by task)")
    add("--tokenizer", metavar="MODEL", help="whose tokenizer to use, where MODEL has none")


def _teacher(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("teacher").add_argument
    add(
        "--teacher",
        default="",
        metavar="MODEL",
        help="a model that knows the task; without it MODEL is fine-tuned first, and teaches; labels: no teacher",
    )
    add("--teacher-epochs", type=int, default=3, metavar="N", help="(3)")
    add("--recall", type=int, default=2048, metavar="MB", help="memory for what the teacher said (2048)")


def _results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seed", type=int, default=0, metavar="N", help="of new heads, the order of rows, and dropout (0)")
    add("-o", "--output", required=True, metavar="OUT", help="the folder for the results")
    add("--force", action="store_true", help="replace results that are already in OUT")
    add(
        "--run",
        metavar="DIR",
        help="where checkpoints are kept (OUT.run): the same command goes on where it stood",
    )
    add("--save", type=float, default=120.0, metavar="SECONDS", help="from one checkpoint to the next (120)")
    add("--restart", action="store_true", help="begin anew")
