"""The command `fxprune`: its arguments, and its exit codes.

Exit codes: 0 success; 1 a claim failed (the slim program differs, or a file could not be proven); 2 the command was called wrongly, or asks
for what is refused, and nothing was written; 3 an error of fxprune itself; 130 interrupted, and no result was written.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, NoReturn, TextIO

from fxprune.analysis.regions import UNITS
from fxprune.calibration.processes import process_count
from fxprune.errors import UsageError
from fxprune.storage.limits import limited
from fxprune.tools.commands import console
from fxprune.tools.commands.bench import bench_command
from fxprune.tools.commands.budget_option import add_budget_options, memory_of
from fxprune.tools.commands.explain import explain_command
from fxprune.tools.commands.layer_family import METHODS
from fxprune.tools.commands.layers import layers_command
from fxprune.tools.commands.options import (
    add_option,
    check_values,
    json_option,
    model_argument,
    output_options,
    recipe,
    session_options,
)
from fxprune.tools.commands.passes import passes_command
from fxprune.tools.commands.quantize_option import add_quantize_option
from fxprune.tools.commands.run import apply_command, run_command
from fxprune.tools.commands.train import train_command
from fxprune.tools.commands.train_options import add_train_options
from fxprune.tools.failures import failure_of
from fxprune.tools.inputs.loaded import MODEL_FORMS
from fxprune.tools.reports.marked_folders import marked_folder, remove_leftovers
from fxprune.training import Recipe

_TOGETHER = ("run", "train")  # commands that several processes may run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _open_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parsed(given)
    except UsageError as error:
        return _fail(error, shown=False)
    try:
        with _terminable(), _own_scratch(getattr(options, "workers", 1)), limited(memory_of(options)):
            return _run_checked(options)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - failure_of has a sentence for each
        return _fail(error, options.traceback)


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are sentences, as all others are, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nsee {self.prog} --help")


def _parsed(given: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; UsageError for one that can't be read, or has a value that no option takes."""
    for before, text in zip(("", *given), given, strict=False):
        if not text or re.fullmatch(r"--[\w-]+=", text):
            option = text.removesuffix("=") or (before if before.startswith("-") else "an argument")
            raise UsageError(f"{option} is empty; give it a value, or leave it out")
    parser = _parser()
    options = parser.parse_args(given)
    check_values(options, _shown(parser, options.command))
    return options


def _shown(parser: argparse.ArgumentParser, command: str) -> dict[str, str]:
    """Return how the arguments of a command are written: the longest flag of an option, the metavar of others."""
    assert parser._subparsers is not None
    (commands,) = parser._subparsers._group_actions
    assert isinstance(commands.choices, dict)
    actions = commands.choices[command]._actions
    return {each.dest: max(each.option_strings, key=len, default=str(each.metavar)) for each in actions}


def _run_checked(options: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise UsageError("standard output is closed; redirect it, to /dev/null if nobody reads it")
    if process_count() > 1 and options.command not in _TOGETHER:
        raise UsageError(
            f"fxprune {options.command} is for one process, and {process_count()} run this; {' and '.join(_TOGETHER)} train in several"
        )
    code = COMMANDS[options.command][0](options)
    sys.stdout.flush()  # a pipe that nobody reads is found out here, not at exit
    return code


def _fail(error: BaseException, shown: bool) -> int:
    sentence, code = failure_of(error)
    if isinstance(error, BrokenPipeError):
        sys.stdout = _nowhere()  # the interpreter flushes it at exit
    with contextlib.suppress(OSError):  # standard error may be closed, too
        if shown:
            sys.stderr.write("".join(traceback.format_exception(error)))
        console.progress().print(f"fxprune: {sentence}", markup=False)
    return code


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _open_streams() -> None:
    """Open standard error where it is closed; both streams print what has no form in their encoding as escapes."""
    if sys.stderr is None:
        sys.stderr = _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _own_scratch(workers: int) -> Iterator[None]:
    """Keep all temporary files in one folder, which a later run removes where this one is killed."""
    before, where = tempfile.tempdir, Path(tempfile.gettempdir())
    if workers > 1:
        get_temp_dir()  # of multiprocessing, which keeps it until the process ends, longer than ours
    remove_leftovers("fxprune", where, "scratch")
    with marked_folder("fxprune", where, "scratch") as scratch:
        tempfile.tempdir = str(scratch)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fxprune",
        description="Prune any PyTorch model into a physically smaller, proven graph.",
        epilog=f"MODEL is {MODEL_FORMS}.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, add_options, help_) in COMMANDS.items():
        command = commands.add_parser(name, help=help_)
        add_options(command)
        command.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return parser


def _run(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    text = 'as in "heads(ratio=0.25), ffn(ratio=0.5), fold"; needed unless --target or --tokens is given'
    parser.add_argument("-p", "--pipeline", metavar="TEXT", help=text)
    add_budget_options(parser)
    add_quantize_option(parser)
    text = "exit with 0 where a pass found nothing to remove (it is a note, and exit code 1)"
    parser.add_argument("--allow-noop", action="store_true", help=text)
    _results(parser)


def _apply(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("selection", metavar="SELECTION.json", help="what an earlier run kept")
    parser.set_defaults(quantize=None, allow_noop=True)
    _results(parser)


def _layers(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    text = "train.* and dev.*: .tsv, .csv, .jsonl or .parquet"
    parser.add_argument("--data", required=True, metavar="DIR", help=text)
    add_option(parser, "--text", "sentence", "COLUMN", "the column of texts (sentence)")
    add_option(parser, "--label", "label", "COLUMN", "the column of classes (label)")
    add_option(parser, "--rows", 0, "N", "use only the first N rows of train (0: all)")
    parser.add_argument("--tokenizer", metavar="MODEL", help="whose tokenizer to use, where MODEL has none")
    add_option(parser, "--output-name", "logits", "NAME", "the output that holds a number a class (logits)")
    _search(parser)
    recipe(parser, Recipe())
    output_options(parser)
    session_options(parser)


def _search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    ways = "; ".join(f"{name}: {what}" for name, (_, _, what) in METHODS.items())
    add_option(group, "--count", 1, "N", "how many go (1); the search finds all smaller numbers, too")
    group.add_argument("--unit", choices=UNITS, default="layer", help="(layer)")
    text = f"the first decides, the others are compared (greedy). {ways}"
    add_option(group, "--by", "greedy", "NAMES", text)
    add_option(group, "--exhaustive", 0, "K", "also try every set of K, and rank what was chosen")
    add_option(group, "--seeds", "0", "LIST", "as in 40,41,42: the whole search for each (0)")
    add_option(group, "--workers", 1, "N", "candidates trained at once, each in a process (1)")
    text = "where evaluations are remembered (OUT.journal.jsonl)"
    group.add_argument("--journal", metavar="FILE", help=text)


def _explain(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument("--axis", metavar="NAME", help="show one axis and its members")
    text = "draw the network, too: a page with axes coloured by group"
    parser.add_argument("--html", metavar="FILE.html", help=text)
    parser.add_argument("--force", action="store_true", help="replace FILE.html where it exists")
    json_option(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE.onnx")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure at each point (3)")
    session_options(parser)


def _model(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    text = "an output that may become narrower (repeatable; all: every output)"
    parser.add_argument("--free-output", action="append", default=[], metavar="NAME", help=text)
    text = "a submodule that is captured in place of the whole model (repeatable; otherwise what can be, where the whole can't)"
    parser.add_argument("--within", action="append", default=[], metavar="PATH", help=text)


def _tokens(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vocabulary", "keep only some token ids, and write token_ids.json")
    text = "ids to keep: one a line, a JSON list, or a token_ids.json"
    group.add_argument("--tokens", metavar="FILE", help=text)
    text = "the embedding's weight, where several read inputs"
    group.add_argument("--token-table", metavar="NAME", help=text)
    text = "an output that counts tokens and whose weights are not tied to the embedding (repeatable)"
    group.add_argument("--token-outputs", action="append", default=[], metavar="NAME", help=text)


def _results(parser: argparse.ArgumentParser) -> None:
    _tokens(parser)
    output_options(parser)
    text = "write a stock Hugging Face checkpoint to OUT/checkpoint, where a config can say the sizes"
    parser.add_argument("--checkpoint", action="store_true", help=text)
    session_options(parser)


#: command: (its function, the function that adds its options, its help)
COMMANDS: Mapping[str, tuple[Callable[[argparse.Namespace], int], Callable[[argparse.ArgumentParser], None], str]] = {
    "run": (run_command, _run, "prune a model with a pipeline; write ONNX, .pt2, selection and report"),
    "apply": (apply_command, _apply, "apply a saved selection to a model"),
    "train": (train_command, add_train_options, "train a model for a task while it loses units; write what is left"),
    "layers": (layers_command, _layers, "find by fine-tuning which layers a text classifier can do without; draw what it costs"),
    "explain": (explain_command, _explain, "show what could go, and why the rest stays whole"),
    "bench": (bench_command, _bench, "time ONNX files against the first of them"),
    "passes": (passes_command, json_option, "list the passes and their options"),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
