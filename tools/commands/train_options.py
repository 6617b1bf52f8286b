"""Options of `fxprune train`."""

import argparse

from fxprune.gates import LOWERINGS
from fxprune.tools.commands.options import add_option, model_argument, output_options, recipe, session_options
from fxprune.tools.commands.run_folder import add_run_options
from fxprune.tools.inputs.metrics import METRICS
from fxprune.tools.inputs.tasks import TASKS
from fxprune.training import Recipe

#: GRAIN's defaults, except for the number of epochs, which is 20 there
OWN = Recipe(epochs=10, learning_rate=3e-5, warmup=0.1, weight_decay=0.01, clip=1.0)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add all options."""
    model_argument(parser)
    _what(parser)
    _data(parser)
    recipe(parser, OWN)
    _teacher(parser)
    _results(parser)
    session_options(parser)


def _what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    ways = "; ".join(f"{name}: {row.help}" for name, row in TASKS.items())
    add("--task", required=True, choices=TASKS, metavar="TASK", help=ways)
    text = 'one pass that trains, as in "grain(density=0.1)"; passes before it prune the model, those after it what is left'
    add("-p", "--pipeline", required=True, metavar="TEXT", help=text)
    add_option(parser, "--metric", "", "NAME", _metrics())
    ways = "; ".join(f"{name}: {what}" for name, (_, what) in LOWERINGS.items())
    text = f"units of unequal sizes (measured: whichever is fastest on the runtime). {ways}"
    add("--lowering", choices=("measured", *LOWERINGS), default="measured", help=text)


def _metrics() -> str:
    ways = "; ".join(f"{name}: {row.help}" for name, row in METRICS.items())
    own = ", ".join(f"{task}: {row.metrics[0]}" for task, row in TASKS.items())
    return f"({own}). {ways}"


def _data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    text = "train.* and dev.*: .tsv, .csv, .jsonl, .parquet, .json (SQuAD) or .txt"
    group.add_argument("--data", required=True, metavar="DIR", help=text)
    columns = "; ".join(f"{task}: {', '.join(row.columns)}" for task, row in TASKS.items())
    add_option(group, "--text", "", "COLUMN", f"the first of the task's columns ({columns})")
    add_option(group, "--second", "", "COLUMN", "second texts, or contexts")
    add_option(group, "--label", "", "COLUMN", "classes, tags or answers")
    text = "the names of all columns, where .tsv or .csv files have no header"
    add_option(group, "--columns", "", "LIST", text)
    add_option(group, "--rows", 0, "N", "use only the first N rows of train (0: all)")
    add_option(group, "--length", 0, "N", "the most tokens of a row (by task)")
    group.add_argument("--tokenizer", metavar="MODEL", help="whose tokenizer to use, where MODEL has none")


def _teacher(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("teacher")
    text = (
        "a model that knows the task; without it MODEL is fine-tuned first, and teaches; labels: no teacher"
    )
    add_option(group, "--teacher", "", "MODEL", text)
    add_option(group, "--teacher-epochs", 3, "N", "(3)")
    add_option(group, "--recall", 2048, "MB", "memory for what the teacher said (2048)")


def _results(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "--seed", 0, "N", "of new heads, the order of rows, and dropout (0)")
    output_options(parser)
    add_run_options(parser)
