"""Tables of labelled rows: a row has the columns of the header, and a label is the text that stands there."""

import json
from pathlib import Path

import pytest

from fxprune.errors import UsageError
from fxprune.tools.inputs.tables import classes_of, describe_classes, read_table, read_task
from fxprune.tools.inputs.tasks import read_classes


def table(folder: Path, text: str, name: str = "train.tsv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sentence\tlabel\na\t1\t\nb\t0\t\n", "line 2: 3 columns, the last one empty, and the header has 2"),
        ("sentence\tlabel\na\tx\t1\nb\t0\n", r"line 2: 3 columns, and the header has 2 \(sentence, label\)"),
        ("sentence\tlabel\na\t1\nb\n", "line 3: 1 columns, and the header has 2"),
        ("sentence\tlabel\t\na\t1\n", "line 2: 2 columns, and the header has 3"),
        ("label\tlabel\na\t1\n", "two columns with the name 'label'"),
        ("", "has no column 'sentence'"),
    ],
)
def test_a_row_of_other_columns_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        read_table(table(tmp_path, text), ["sentence", "label"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('sentence,label\n"a, b,1\n', "can't be read: unexpected end of data"),
        ("sentence,label\n,1,2\n", "line 2: 3 columns"),
    ],
)
def test_a_csv_file_is_read_strictly(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        read_table(table(tmp_path, text, "train.csv"), ["sentence", "label"])


def test_labels_and_texts_are_what_stands_there(tmp_path: Path) -> None:
    rows = "007\t01\n\n1e3\t1\nNA\t1.0\nnull\tTrue\n"
    path = table(tmp_path, f"\ufeffsentence\tlabel\n{rows}")
    sentences, labels = read_table(path, ["sentence", "label"])
    assert sentences == ["007", "1e3", "NA", "null"]
    assert labels == ["01", "1", "1.0", "True"]
    assert read_table(table(tmp_path, rows), ["label"], ["sentence", "label"]) == [labels]
    quoted = table(tmp_path, 'sentence,label\n"a ""b"",\nc",1\n' + "x" * 200_000 + ",2\n", "train.csv")
    assert read_table(quoted, ["sentence"]) == [['a "b",\nc', "x" * 200_000]]


def test_a_class_that_is_empty_or_missing_is_refused(tmp_path: Path) -> None:
    table(tmp_path, "sentence\tlabel\na\t1\nb\t\n")
    table(tmp_path, "sentence\tlabel\na\t1\n", "dev.tsv")
    with pytest.raises(UsageError, match="train has 1 empty classes; the first is number 2"):
        read_task(tmp_path)
    pytest.importorskip("datasets")
    lines = [{"sentence": "a", "label": 1}, {"sentence": "b"}]
    path = table(tmp_path, "\n".join(map(json.dumps, lines)), "dev.jsonl")
    with pytest.raises(UsageError, match="row 2: no 'label'"):
        read_table(path, ["sentence", "label"])


def test_classes_are_counted() -> None:
    found = {"train": ["b", "a", "b", "b"], "dev": ["a", "b"]}
    assert classes_of(found) == ("a", "b")
    assert describe_classes(found) == "train: b 3, a 1; dev: a 1, b 1"
    many = {"train": [str(i) for i in range(15)]}
    assert describe_classes(many).endswith("11 1, 3 more")
    tables = {"train": [["x y", "z"], ["O C", "O"]], "dev": [["x"], ["O"]]}
    assert read_classes("token-classification", tables) == (("C", "O"), "train: O 2, C 1; dev: O 1")
    assert read_classes("text-generation", tables) == ((), "")
