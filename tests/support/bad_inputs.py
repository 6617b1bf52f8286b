"""Bad inputs of the command line: every option of every command, read from the parser, with every value that is bad for its kind."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fxprune.tools.commands import main as command_line

NET, WORDS, LOWRANK = "py:bad_net:net", "py:bad_net:words", "lowrank(energy=0.9)"

LONG = "n" * 300

#: a call of each command that is right, in the folder that `support.bad_files.furnish` fills
CALLS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "run": ("run", NET, "-p", "ffn(ratio=0.5)", "-o", "out"),
        "apply": ("apply", NET, "none.json", "-o", "out"),
        "train": (
            *("train", "hf:model", "--task", "text-classification", "--data", "task"),
            *("-p", "grain(density=0.3)", "-o", "out"),
        ),
        "layers": ("layers", "hf:model", "--data", "task", "-o", "out"),
        "explain": ("explain", NET),
        "bench": ("bench", "model.onnx"),
        "passes": ("passes",),
    }
)

#: what an option of a command needs beside it, to be looked at at all; "run device" is the option of one command
BESIDE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "token_table": ("--tokens", "ids.txt"),
        "token_outputs": ("--tokens", "ids.txt"),
        "calibration": ("-p", LOWRANK),
        "held_back": ("-p", LOWRANK, "--calibration", "photos"),
        "image_normalization": ("-p", LOWRANK, "--calibration", "photos"),
        "sampling_rate": ("-p", LOWRANK, "--calibration", "photos"),
        **dict.fromkeys(
            ("run run", "run device", "run restart"),
            ("--recover", "1steps", "--calibration", "rows.npz"),
        ),
    }
)

_TEXTS = ("a\0b", "\udc80", "")
_PATHS = ("absent", LONG, "loop", "folder", "two\nlines")
_INTEGERS = ("x", "1.5", "-1", "9" * 30, "9" * 5000, "nan", "")
_FLOATS = ("x", "nan", "-1", "inf", "1e400", "")
_FOLDERS = (LONG, f"folder/{LONG}", "loop", "model.onnx", "model.onnx/below")
_NAMES = ("nonsense", "a\x1b[31mb", LONG)

#: further words that name an argument, by its metavar
_ALSO = {"TEXT": ("pipeline", "pass"), "MODEL": ("an argument is empty",), "SELECTION.json": ("an argument is empty",),
         "FILE.onnx": ("an argument is empty",)}  # fmt: skip
_MODELS = (
    *("nonsense", "hf:absent", "hf:folder", f"hf:{LONG}", "hf:loop", "hf:model.onnx", "hf:"),
    *("py:absent:net", "py:bad_net", "py::", "py:bad_net:", "py:bad net:x", "absent.pt2", "loop.pt2", f"{LONG}.pt2"),
    *("folder", "model.onnx", "model/model.safetensors", "task/train.tsv"),
)  # fmt: skip

_FUNCTIONS = (
    *(f"py:bad_net:{name}" for name in ("absent", "number", "ends", "fails", "recurses", "five", "many", "misfits")),
    *(f"py:{name}:net" for name in ("bad_syntax", "bad_exit", "bad_text", "bad_import")),
)  # fmt: skip

#: values that are bad for an option or argument that takes a text, by its destination
WRONG: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "model": (*_MODELS, "hf:model#nonsense", *_FUNCTIONS),
        "teacher": _MODELS,
        "tokenizer": (*_MODELS, NET),
        "selection": (*_PATHS, "model.onnx", "ids.txt"),
        "tokens": (*_PATHS, "model.onnx", "selection.json"),
        "files": (*_PATHS, "selection.json"),
        "data": (*_PATHS, "model"),
        "calibration": (*_PATHS, "model.onnx", "py:absent:f", "py:bad_net", "py:bad_net:absent", "py:bad_net:ends", "photos"),
        "held_back": (*_PATHS, "model.onnx", "py:absent:f", "py:bad_net:ends"),
        "image_normalization": (
            *("nonsense", "imagenet,clip", "mean=0.5", "std=0.5", "mean=0.5 std=0", "mean=0.5 std=-1", "mean=nan std=1", "mean=0 std=inf"),
            *("mean=0,0 std=1", "mean=0,0,0,0 std=1", "mean=x std=1", "mean= std=", "mean=0 std=1 max=2", LONG, "a\x1b[31mb"),
        ),
        "output": (*_FOLDERS, "model"),
        "run": (*_FOLDERS, "model"),
        "journal": (*_FOLDERS, "folder", "ids.txt"),
        "html": (*_FOLDERS, "folder"),
        "pipeline": (
            *("nonsense", "nonsense(ratio=0.5)", "ffn", "ffn()", "ffn(0.5, 0.5)", "ffn(ratio=2)", "ffn(ratio=1e999)"),
            *("ffn(ratio='x')", "ffn(ratio=0.5, ratio=0.5)", "ffn(nonsense=1)", "ffn(**{})", "ffn(ratio=0.5) ffn"),
            *("ffn(ratio=0.5", "1", ",", "(" * 5000, "-" * 5000, "lowrank(rank=-1)", "lowrank(rank=1, energy=0.5)"),
            *("slim(latency=-1)", "import os", "\n\n\n\nx\n\n\n", "ffn(ratio=None)", "ffn(ratio=[])"),
        ),
        "target": ("nonsense", "latency", "latency=", "latency=2", "latency=0", "latency=nan", "latency=x", "no=0.5"),
        "memory": ("nonsense", "0", "-1GB", "6XB", "nan", "1e400GB", "GB"),
        "recover": ("nonsense", "0min", "min", "10", "-1min", "nan min", "1e9h5", "10 hours", "0.5steps"),
        "free_output": _NAMES,
        "within": _NAMES,
        "token_table": _NAMES,
        "token_outputs": _NAMES,
        "axis": _NAMES,
        "output_name": ("nonsense",),
        "metric": (*_NAMES, "perplexity", "py:", "py:absent:metric", "py:bad_net:absent", "py::", "py:bad net:x"),
        "runtime": (*_NAMES, "torch", "onnxruntime:nonsense", "openvino:nonsense"),
        "text": _NAMES,
        "second": _NAMES,
        "label": _NAMES,
        "columns": ("aa", "aa,bb", "aa,aa,bb", "sentence,label,more"),
        "device": ("abacus", "cuda:99", "cpu:7", "meta"),
        "by": ("nonsense", "greedy,nonsense", ",", "greedy,"),
        "seeds": ("x", "1,x", "-1", "9" * 30, "9" * 5000, ",", "1.5"),
    }
)  # fmt: skip


@dataclass(frozen=True)
class BadCall:
    """A call with one bad value: its name in the test's id, the arguments, and texts of which the sentence must hold one."""

    name: str
    arguments: tuple[str, ...]
    named: tuple[str, ...]


def bad_calls() -> Iterator[BadCall]:
    """Yield every command with each of its options, for each value that is bad for it."""
    parsers = _parsers()
    assert parsers.keys() == CALLS.keys()
    for command, parser in parsers.items():
        for action in parser._actions:
            if action.dest != "help":
                yield from (_call(command, action, value) for value in _bad_values(action))


def _parsers() -> dict[str, argparse.ArgumentParser]:
    parser = command_line._parser()
    assert parser._subparsers is not None
    (commands,) = parser._subparsers._group_actions
    assert isinstance(commands.choices, dict)
    return commands.choices


def _bad_values(action: argparse.Action) -> tuple[str, ...]:
    if action.nargs == 0:
        return ("yes",)
    if action.type is int:
        return _INTEGERS
    if action.type is float:
        return _FLOATS
    if action.choices is not None:
        return (*_NAMES, *_TEXTS)
    return (*WRONG[action.dest], *_TEXTS)


def _call(command: str, action: argparse.Action, value: str) -> BadCall:
    flag = max(action.option_strings, key=len, default="")
    shown = f"{command}-{flag.lstrip('-') or action.metavar}={_short(value)}"
    right = CALLS[command]
    if flag:
        beside = BESIDE.get(f"{command} {action.dest}") or BESIDE.get(action.dest, ())
        asked = (WORDS if entry == NET and "--tokens" in beside else entry for entry in right)
        return BadCall(shown, (*asked, *beside, f"{flag}={value}"), _named(flag, str(action.metavar), value))
    place = 2 if action.dest == "selection" else 1
    return BadCall(
        shown, (*right[:place], value, *right[place + 1 :]), _named("", str(action.metavar), value)
    )


def _named(flag: str, metavar: str, value: str) -> tuple[str, ...]:
    """Return the texts of which a sentence must hold one, in lower case: the flag (or metavar), and words of the value."""
    words = re.findall(r"[\w.]{2,40}", value)
    return tuple(word.lower() for word in (flag or metavar, *words, *_ALSO.get(metavar, ())))


def _short(value: str) -> str:
    told = value.encode("ascii", "backslashreplace").decode().encode("unicode_escape").decode()
    return told if len(told) <= 24 else f"{told[:16]}…{len(value)}"
