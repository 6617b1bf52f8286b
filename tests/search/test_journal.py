"""Journals of searches: a file of somebody else is never written to."""

from pathlib import Path

import pytest

from fxprune.errors import UsageError
from fxprune.search.journal import Journal

ENTRY = '{"format": "fxprune.journal/1", "evaluator": "e", "program": "p", "removed": ["a"], "score": 0.5}\n'


@pytest.mark.parametrize(
    "text",
    [
        "sentence\tlabel\na cat\t1\n",
        "sentence\tlabel",
        "{}",
        '{"format": "fxprune.selection/1", "axes": {}}\n',
        '{"form',
        ENTRY + "a cat\t1\n",
        ENTRY.replace('"program": "p", ', ""),
        ENTRY.replace("0.5", '"good"'),
        ENTRY.replace('["a"]', "3"),
        ENTRY.replace("0.5", "9" * 5000),
        ENTRY.replace("0.5", "[" * 100_000),
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_stays(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text(text)
    if text == '{"form':
        Journal(path, "e", "p")  # what a process that was killed at once may leave
        return
    with pytest.raises(UsageError, match="no journal of a search; give another path"):
        Journal(path, "e", "p")
    assert path.read_text() == text


def test_a_journal_that_could_not_be_written_is_known_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be written"):
        Journal(tmp_path / "absent" / "journal.jsonl", "e", "p")
    with pytest.raises(UsageError, match="Is a directory"):
        Journal(tmp_path, "e", "p")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match="can't read the journal"):
        Journal(tmp_path / "latin", "e", "p")


def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    (tmp_path / "journal").touch()
    Journal(tmp_path / "journal", "e", "p").write(["a"], 0.5, 1.0)
    assert Journal(tmp_path / "journal", "e", "p").scores == {frozenset("a"): 0.5}
