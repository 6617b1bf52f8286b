"""The command `fxprune`: its arguments, and its exit codes.

Exit codes: 0 success; 1 a claim failed (the slim program differs, or a file could not be proven); 2 the command was called wrongly, or asks
for what is refused, and nothing was written; 130 interrupted, and no result was written.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fxprune.analysis.regions import UNITS
from fxprune.errors import CaptureError, FxpruneError, PipelineError, RefusedError, SelectionError, UsageError
from fxprune.tools.commands import (
    console,
    train_options,
)
from fxprune.tools.commands.bench import bench_command
from fxprune.tools.commands.budget_option import add_budget_options
from fxprune.tools.commands.explain import explain_command
from fxprune.tools.commands.layer_family import METHODS
from fxprune.tools.commands.layers import layers_command
from fxprune.tools.commands.options import json_option, recipe, session_options
from fxprune.tools.commands.passes import passes_command
from fxprune.tools.commands.quantize_option import add_quantize_option
from fxprune.tools.commands.run import apply_command, run_command
from fxprune.tools.commands.train import train_command
from fxprune.tools.inputs.loaded import MODEL_FORMS
from fxprune.training import Recipe

COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = MappingProxyType(
    {
        "run": run_command,
        "apply": apply_command,
        "train": train_command,
        "layers": layers_command,
        "explain": explain_command,
        "bench": bench_command,
        "passes": passes_command,
    }
)
BAD_USE = (CaptureError, PipelineError, RefusedError, SelectionError, UsageError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = _parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options)
    except FxpruneError as error:
        console.progress().print(f"fxprune: {error}", markup=False)
        return 2 if isinstance(error, BAD_USE) else 1
    except KeyboardInterrupt:
        console.progress().print("fxprune: interrupted; no result was written", markup=False)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fxprune",
        description="Prune any PyTorch model into a physically smaller, proven graph.",
        epilog=f"MODEL is {MODEL_FORMS}.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _run(
        commands.add_parser(
            "run", help="prune a model with a pipeline; write ONNX, .pt2, selection and report"
        )
    )
    _apply(commands.add_parser("apply", help="apply a saved selection to a model"))
    train_options.add_train_options(
        commands.add_parser("train", help="train a model for a task while it loses units; write what is left")
    )
    _layers(
        commands.add_parser(
            "layers",
            help="find by fine-tuning which layers a text classifier can do without; draw what it costs",
        )
    )
    _explain(commands.add_parser("explain", help="show what could go, and why the rest stays whole"))
    _bench(commands.add_parser("bench", help="time ONNX files against the first of them"))
    json_option(commands.add_parser("passes", help="list the passes and their options"))
    return parser


def _run(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "-p",
        "--pipeline",
        metavar="TEXT",
        help='as in "heads(ratio=0.25), ffn(ratio=0.5), fold"; needed unless --target or --tokens is given',
    )
    add_budget_options(parser)
    add_quantize_option(parser)
    _results(parser)


def _apply(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("selection", metavar="SELECTION.json", help="what an earlier run kept")
    parser.set_defaults(quantize=None)
    _results(parser)


def _layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_FORMS)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="train.* and dev.*: .tsv, .csv, .jsonl or .parquet")
    add("--text", default="sentence", metavar="COLUMN", help="the column of texts (sentence)")
    add("--label", default="label", metavar="COLUMN", help="the column of classes (label)")
    add("--rows", type=int, default=0, metavar="N", help="use only the first N rows of train (0: all)")
    add("--tokenizer", metavar="MODEL", help="whose tokenizer to use, where MODEL has none")
    add(
        "--output-name",
        default="logits",
        metavar="NAME",
        help="the output that holds a number a class (logits)",
    )
    _search(parser)
    recipe(parser, Recipe())
    add("-o", "--output", required=True, metavar="OUT", help="the folder for the results")
    add("--force", action="store_true", help="replace results that are already in OUT")
    session_options(parser)
    json_option(parser)


def _search(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("search").add_argument
    ways = "; ".join(f"{name}: {what}" for name, (_, _, what) in METHODS.items())
    add(
        "--count",
        type=int,
        default=1,
        metavar="N",
        help="how many go (1); the search finds all smaller numbers, too",
    )
    add("--unit", choices=UNITS, default="layer", help="(layer)")
    add(
        "--by",
        default="greedy",
        metavar="NAMES",
        help=f"the first decides, the others are compared (greedy). {ways}",
    )
    add(
        "--exhaustive",
        type=int,
        default=0,
        metavar="K",
        help="also try every set of K, and rank what was chosen",
    )
    add("--seeds", default="0", metavar="LIST", help="as in 40,41,42: the whole search for each (0)")
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="candidates trained at once, each in a process (1)",
    )
    add("--journal", metavar="FILE", help="where evaluations are remembered (OUT.journal.jsonl)")


def _explain(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--axis", metavar="NAME", help="show one axis and its members")
    parser.add_argument(
        "--html", metavar="FILE.html", help="draw the network, too: a page with axes coloured by group"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE.html where it exists")
    json_option(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE.onnx")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure at each point (3)")
    session_options(parser)
    json_option(parser)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_FORMS)
    parser.add_argument(
        "--free-output",
        action="append",
        default=[],
        metavar="NAME",
        help="an output that may become narrower (repeatable; all: every output)",
    )


def _tokens(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vocabulary", "keep only some token ids, and write token_ids.json")
    group.add_argument(
        "--tokens", metavar="FILE", help="ids to keep: one a line, a JSON list, or a token_ids.json"
    )
    group.add_argument(
        "--token-table", metavar="NAME", help="the embedding's weight, where several read inputs"
    )
    group.add_argument(
        "--token-outputs",
        action="append",
        default=[],
        metavar="NAME",
        help="an output that counts tokens and whose weights are not tied to the embedding (repeatable)",
    )


def _results(parser: argparse.ArgumentParser) -> None:
    _tokens(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the folder for the results")
    parser.add_argument("--force", action="store_true", help="replace results that are already in OUT")
    parser.add_argument(
        "--checkpoint",
        action="store_true",
        help="write a stock Hugging Face checkpoint to OUT/checkpoint, where a config can say the sizes",
    )
    session_options(parser)
    json_option(parser)


if __name__ == "__main__":
    sys.exit(main())
