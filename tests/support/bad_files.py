"""Bad files of the command line: every kind of file that a command reads, with every way to break it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from support.bad_inputs import CALLS, LOWRANK, NET

#: right files of JSON
RIGHT: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "selection.json": {
            "format": "fxprune.selection/1", "axes": {"ffn": [0, 1]}, "sizes": {"ffn": 16}, "within": {}, "model": "", "removed": [],
        },
        "none.json": {"format": "fxprune.selection/1", "axes": {}},
        "token_ids.json": {
            "format": "fxprune.tokens/1", "table": "table.weight", "size": 10, "inputs": ["input_ids"], "outputs": [], "ids": [1, 2],
        },
        "journal.jsonl": {
            "format": "fxprune.journal/1", "evaluator": "", "program": "", "removed": ["a"], "score": 0.5, "seconds": 1.0,
        },
        "questions/train.json": {
            "data": [{"paragraphs": [{"context": "the red", "qas": [{"question": "red", "answers": []}]}]}],
        },
    }
)  # fmt: skip

_PARAGRAPH = {"context": "a", "qas": [{"question": "a", "answers": [{"text": 5, "answer_start": "x"}]}]}

#: bad values of the fields of JSON, by file; "" stands for all values of other types than the right one
FIELDS: Mapping[str, Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "selection.json": {
            "format": ("", "fxprune.selection/9"),
            "axes": ("", {"ffn": "x"}, {"ffn": [-1]}, {"ffn": [99]}, {"ffn": [1, 0]}, {"ffn": [True]}, {"ffn": []},
                     {"ffn": [10**25]}, {"ffn": [[0], [0, 1]]}, {"ffn": [[]]}, {"ffn": {"a": 1}}, {"no": [0]}, {"\0": [0]}),
            "sizes": ("", {"ffn": 99}, {"ffn": "x"}, {"ffn": 1.5}, {"ffn": True}),
            "within": ("", {"ffn": 5}),
            "model": ("", "0" * 64),
            "removed": ("", ["no.region"], [5], [[]]),
        },
        "token_ids.json": {
            "format": ("", "fxprune.tokens/9"),
            "table": ("", "no.table", "\0"),
            "size": ("", -1, 99, 0),
            "ids": ("", [], [-1], [99], [1, 1], [2, 1], [1.5], ["x"], [True], [10**25], [[1]]),
            "inputs": ("", [5]),
            "outputs": ("", ["nonsense"], [5]),
        },
        "journal.jsonl": {"removed": (5, 1.5, [[1]]), "score": ("x", [1], {"a": 1})},
        "questions/train.json": {
            "data": ("", [5], [{}], [{"paragraphs": 5}], [{"paragraphs": [5]}], [{"paragraphs": [{"qas": [{}]}]}],

                     [{"paragraphs": [_PARAGRAPH]}],
                     [{"paragraphs": [{**_PARAGRAPH, "qas": [{"question": "a", "answers": [{"no": 5}]}]}]}]),
        },
        "broken/config.json": {
            "architectures": (5, [5], {"a": 1}), "model_type": (5, "nonsense", ["bert"], "../x"),
            "hidden_size": ("x", -1, 1e30, 10**30, 17),
            "num_attention_heads": (0, -1, 3, "x", [2]), "vocab_size": (-1, "x", 1e30, 1.5), "num_hidden_layers": ("x", 1.5),
            "hidden_act": ("nonsense", 5), "intermediate_size": (-1, "x", 10**14), "type_vocab_size": (-1, "x"), "dtype": ("nonsense",),
            "max_position_embeddings": (-5, "x"), "layer_norm_eps": ("x",),
        },
        "kept.run/run.json": {"format": ("", "fxprune.checkpoints/9"), "options": ("", {})},
        "kept.run/student-1/step-3/checkpoint.json": {
            "format": ("", "fxprune.checkpoint/9"), "step": ("", -1, 10**9), "loss": ("x", [1], None), "history": (5, [5]),
            "steps": ("x", 99), "processes": ("x", 99), "sampler": (5, {}), "schedule": (5, {}, {"steps": 1, "calls": 1, "rates": []}),
        },
    }
)  # fmt: skip

_VALUES: tuple[Any, ...] = (True, 1.5, "x", [[1]], {"a": 1.5})

_RANDOM = random.Random(0).randbytes(2000)

#: name: how the bytes of a file are broken
BROKEN: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {
        "empty": lambda _: b"",
        "half": lambda whole: whole[: len(whole) * 4 // 7],
        "random": lambda _: _RANDOM,
        "zeros": lambda _: b"\0" * 200,
        "utf-16": lambda whole: whole.decode("latin1").encode("utf-16"),
        "surrogate": lambda whole: b"\xed\xb2\x80" + whole,
        "text": lambda _: b"hello\n\nworld\n",
        "deep-list": lambda _: b"[" * 100_000,
        "deep-object": lambda _: b'{"a":' * 100_000,
        "digits": lambda _: b"[" + b"9" * 5000 + b"]",
        "nan": lambda _: b"[NaN]",
        "infinity": lambda _: b'{"format": Infinity}',
        "null": lambda _: b"null",
        "twice": lambda _: b'{"format": 1, "format": 2}',
    }
)

#: name: what lies in the place of a file, which can't be opened as one
PLACES = ("missing", "folder", "link to itself")


@dataclass(frozen=True)
class Kind:
    """A kind of file: its path, the call that reads it there, texts of which the sentence must hold one, and the ways that leave it right.

    `foreign` are right files of other kinds, which are given under its name.
    """

    path: str
    call: tuple[str, ...]
    named: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ("model.onnx", "net.pt2", "rows.npz", "rows.safetensors", "selection.json")


@dataclass(frozen=True)
class BadFile:
    """A kind of file, broken in one way: a row of BROKEN or PLACES, another file's name, or a value of a field."""

    kind: Kind
    way: str
    field: tuple[str, Any] | None = None

    @property
    def name(self) -> str:
        """The name in the test's id."""
        told = f"{self.field[0]}={json.dumps(self.field[1])[:30]}" if self.field else self.way
        return f"{self.kind.path}-{told}"

    def broken(self, whole: bytes, other: Callable[[str], bytes]) -> bytes:
        """Return the bytes of the broken file; `other` reads a right file of another kind."""
        if self.field:
            return (json.dumps({**json.loads(whole), self.field[0]: self.field[1]}) + "\n").encode()
        return BROKEN[self.way](whole) if self.way in BROKEN else other(self.way)


_LABELS = ("--teacher", "labels", "--epochs", "1")
#: the call whose checkpoints are broken
KEPT = (*CALLS["train"], *_LABELS, "--run", "kept.run")


def _calibrated(file: str, model: str = NET) -> tuple[str, ...]:
    return ("run", model, "-p", LOWRANK, "-o", "out", "--calibration", file)


def _tokens(file: str) -> tuple[str, ...]:
    return ("run", "py:bad_net:words", "-o", "out", "--tokens", file)


def _task(folder: str, task: str = "text-classification") -> tuple[str, ...]:
    return ("train", "hf:model", "--task", task, "--data", folder, *CALLS["train"][6:], *_LABELS)


_TEXTUAL = (
    "half",
    "zeros",
    "text",
    "deep-list",
    "deep-object",
    "digits",
    "nan",
    "infinity",
    "null",
    "twice",
    "selection.json",
)

KINDS = (
    Kind("net.pt2", ("explain", "net.pt2")),
    Kind("model.onnx", ("bench", "model.onnx")),
    Kind("selection.json", ("apply", NET, "selection.json", "-o", "out")),
    Kind("ids.txt", _tokens("ids.txt"), right=("half",)),
    Kind("token_ids.json", _tokens("token_ids.json"), ("no.table", "nonsense", "\\x00", "99")),
    Kind("rows.npz", _calibrated("rows.npz")),
    Kind("rows.npy", _calibrated("rows.npy")),
    Kind("rows.safetensors", _calibrated("rows.safetensors")),
    Kind("texts.txt", _calibrated("texts.txt", "hf:model"), right=_TEXTUAL),
    Kind("journal.jsonl", (*CALLS["layers"], "--journal", "journal.jsonl"), right=("missing", "empty", "half")),
    Kind("task/train.tsv", _task("task"), ("train",)),
    Kind("csv/train.csv", _task("csv"), ("train",)),
    Kind("jsonl/train.jsonl", _task("jsonl"), ("train",)),
    Kind("parquet/train.parquet", _task("parquet"), ("train",)),
    Kind("questions/train.json", _task("questions", "question-answering"), ("train",)),
    Kind("broken/config.json", ("explain", "hf:broken"), ("broken",)),
    Kind("broken/model.safetensors", ("explain", "hf:broken"), ("broken",)),
    Kind("broken/tokenizer.json", _calibrated("texts.txt", "hf:broken"), ("broken",)),
    Kind("kept.run/run.json", KEPT, ("kept.run",)),
    Kind("kept.run/student-1/step-3/checkpoint.json", KEPT, ("step-3",)),
    Kind("kept.run/student-1/step-3/tensors.safetensors", KEPT, ("step-3",)),
)  # fmt: skip


def bad_files() -> Iterator[BadFile]:
    """Yield every kind of file, broken in every way that does not leave it right."""
    for kind in KINDS:
        ways = (*PLACES, *BROKEN, *(path for path in kind.foreign if path != kind.path))
        yield from (BadFile(kind, way) for way in ways if way not in kind.right)
        for field, values in FIELDS.get(kind.path, {}).items():
            right = RIGHT.get(kind.path, {}).get(field)
            every = (*(_others(right) if "" in values else ()), *(value for value in values if value != ""))
            yield from (BadFile(kind, "", (field, value)) for value in every)


def _others(right: Any) -> tuple[Any, ...]:
    return tuple(value for value in _VALUES if type(value) is not type(right))
