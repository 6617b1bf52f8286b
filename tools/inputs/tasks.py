"""Tasks of `fxprune train`: TASKS, one row each, named as in transformers."""

import argparse
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.tools.inputs.metrics import METRICS, exact, overlap
from fxprune.tools.inputs.tables import classes_of, describe_classes, read_table, table_file
from fxprune.tools.inputs.tokenize import Answers, Questions, encode_questions, encode_tags, encode_text
from fxprune.training import Examples, Task
from fxprune.training.examples import IGNORED, encoded
from fxprune.training.fine_tune import perplexity, predict, predicted

_Tables = Mapping[str, list[list[Any]]]
"""The columns of train and of dev."""


@dataclass(frozen=True, eq=False)
class PreparedTask(Task):
    """Task whose modules are judged on dev; `rows` are the numbers of rows of train and of dev."""

    rows: tuple[int, int] = (0, 0)

    def scores(self, module: nn.Module) -> dict[str, float]:
        """Return the metrics of a module on dev."""
        assert self.judge is not None
        return dict(self.judge(module))


@dataclass(frozen=True)
class _Task:
    """A kind of task: its columns, the metrics that fit (the first is the default), how its lesson is made, and the length of rows.

    `labels` returns the classes of a table's rows, if it has classes.
    """

    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    lesson: Callable[["TaskRequest"], PreparedTask]
    help: str
    labels: Callable[[list[list[Any]]], list[str]] | None = None
    length: int = 128
    lower_is_better: bool = False


@dataclass(frozen=True)
class TaskRequest:
    """The parts that a lesson is made of."""

    tables: _Tables
    classes: tuple[str, ...]
    tokenizer: Any
    program: Program
    length: int
    metric: str


def read_columns(options: argparse.Namespace) -> _Tables:
    """Read the columns of both files; of train, only the first `--rows` rows where that is given."""
    row = TASKS[options.task]
    named = (options.text, options.second, options.label)
    columns = columns_of(row, named, pairs=options.task == "text-classification" and bool(options.second))
    files = {name: table_file(Path(options.data), name) for name in ("train", "dev")}
    names = tuple(options.columns.split(",")) if options.columns else ()
    reader = _squad if options.task == "question-answering" else partial(read_table, names=names)
    found = {name: reader(path, columns) for name, path in files.items()}
    return {**found, "train": [column[: options.rows or None] for column in found["train"]]}


def columns_of(row: _Task, named: Sequence[str], pairs: bool) -> list[str]:
    """Return the task's columns, under the names that the user gave; `pairs` adds the second texts."""
    text, second, label = named
    given = {"text": text, "second": second, "label": label}
    places = {1: ("text",), 2: ("text", "label"), 3: ("text", "second", "label")}[len(row.columns)]
    found = [given[place] or default for place, default in zip(places, row.columns, strict=True)]
    return [found[0], second, found[1]] if pairs else found


def _squad(path: Path, columns: Sequence[str]) -> list[list[Any]]:
    """Read questions, contexts and answers; a .json file is nested as SQuAD's own are."""
    if path.suffix == ".json":
        (articles,) = read_table(path, ["paragraphs"])
        questions, contexts, found = _nested(path, articles)
    else:
        questions, contexts, found = read_table(path, columns)
    return [questions, contexts, [_answers(path, row, one) for row, one in enumerate(found, 1)]]


def _nested(path: Path, articles: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Return questions, contexts and answers; UsageError where they are not nested as SQuAD's are."""
    try:
        rows = [
            (str(question["question"]), str(paragraph["context"]), question["answers"])
            for article in articles
            for paragraph in article
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError):
        raise UsageError(
            f"{path} is not nested as SQuAD is: paragraphs have a context and qas, and these a question and answers"
        ) from None
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _answers(path: Path, row: int, found: Any) -> Answers:
    """Return answers from {text: […], answer_start: […]}, as `datasets` has it, or from [{text: …, answer_start: …}]."""
    try:
        pairs = zip(found["text"], found["answer_start"], strict=True) if isinstance(found, Mapping) else None
        read = list(pairs) if pairs else [(one["text"], one["answer_start"]) for one in found]
    except (KeyError, TypeError, ValueError):
        read = [(None, None)]
    if not all(isinstance(text, str) and isinstance(start, int) for text, start in read):
        raise UsageError(
            f"{path}, question {row}: answers must be texts with the number of the letter where each starts (answer_start),"
            f" got {reprlib.repr(found)}"
        )
    return read


def read_classes(task: str, tables: _Tables) -> tuple[tuple[str, ...], str]:
    """Return the classes of train, and how often each occurs in both tables, as text; nothing for a task without classes."""
    labels_of = TASKS[task].labels
    if labels_of is None:
        return (), ""
    found = {name: labels_of(columns) for name, columns in tables.items()}
    return classes_of(found), describe_classes(found)


def _labels(columns: list[list[Any]]) -> list[str]:
    return [str(value) for value in columns[-1]]


def _tags(columns: list[list[Any]]) -> list[str]:
    return [tag for row in columns[-1] for tag in _split(row)]


def _split(row: Any) -> list[str]:
    """Return words or tags, from a list or from a text with spaces between them."""
    return row.split() if isinstance(row, str) else [str(value) for value in row]


def _texts(asked: TaskRequest) -> PreparedTask:
    number = {name: i for i, name in enumerate(asked.classes)}

    def made(columns: list[list[Any]]) -> Examples:
        *texts, labels = columns
        rows: list[Any] = [tuple(map(str, pair)) for pair in zip(*texts, strict=True)]
        plain = rows if len(texts) > 1 else [text for (text,) in rows]
        return encoded(asked.tokenizer, plain, [number[str(x)] for x in labels], asked.program, asked.length)

    return _classes(asked, made)


def _words(asked: TaskRequest) -> PreparedTask:
    number = {name: i for i, name in enumerate(asked.classes)}

    def made(columns: list[list[Any]]) -> Examples:
        words, tags = ([_split(row) for row in column] for column in columns)
        classes = [[number[tag] for tag in row] for row in tags]
        return encode_tags(asked.tokenizer, words, classes, asked.program, asked.length)

    return _classes(asked, made)


def _classes(asked: TaskRequest, made: Callable[[list[list[Any]]], Examples]) -> PreparedTask:
    train, dev = (made(asked.tables[name]) for name in ("train", "dev"))

    def judge(module: nn.Module) -> dict[str, float]:
        answers, labels = predicted(asked.program, module, dev).flatten(), dev.labels.flatten()
        counted = labels != IGNORED
        return {asked.metric: METRICS[asked.metric].of(labels[counted].numpy(), answers[counted].numpy())}

    return PreparedTask(train, ("logits",), judge, (len(train), len(dev)))


def _questions(asked: TaskRequest) -> PreparedTask:
    def made(name: str) -> Questions:
        questions, contexts, answers = asked.tables[name]
        return encode_questions(asked.tokenizer, questions, contexts, answers, asked.program, asked.length)

    train, dev, outputs = made("train"), made("dev"), ("start_logits", "end_logits")

    def judge(module: nn.Module) -> dict[str, float]:
        said = predict(asked.program, module, dev.examples, outputs)
        texts = dev.texts((index, logits) for index, logits, _ in said)
        both = [(text, answers) for text, answers in zip(texts, dev.answers, strict=True) if answers]
        return {
            name: sum(max(score(right, text) for right, _ in answers) for text, answers in both)
            / max(1, len(both))
            for name, score in (("f1", overlap), ("exact", exact))
        }

    return PreparedTask(train.examples, outputs, judge, (len(train.contexts), len(dev.contexts)))


def _running(asked: TaskRequest) -> PreparedTask:
    train, dev = (
        encode_text(asked.tokenizer, [str(x) for x in asked.tables[name][0]], asked.program, asked.length)
        for name in ("train", "dev")
    )

    def judge(module: nn.Module) -> dict[str, float]:
        return {"perplexity": perplexity(asked.program, module, dev)}

    return PreparedTask(train, ("logits",), judge, (len(train), len(dev)))


TASKS: dict[str, _Task] = {
    "text-classification": _Task(
        ("sentence", "label"), tuple(METRICS), _texts,
        "a class for each text, or pair of texts (--second)", _labels,
    ),
    "token-classification": _Task(
        ("tokens", "tags"), ("f1", "accuracy", "matthews"), _words,
        "a class for each word: lists, or words with spaces between", _tags,
    ),
    "question-answering": _Task(
        ("question", "context", "answers"), ("f1",), _questions,
        "where in a context the answer stands, as in SQuAD", length=384,
    ),
    "text-generation": _Task(
        ("text",), ("perplexity",), _running, "the next token of running text", lower_is_better=True,
    ),
}  # fmt: skip
