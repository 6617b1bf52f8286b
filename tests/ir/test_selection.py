"""Selections are plain data: checked, printed, saved, loaded and composed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune import FxpruneError, Selection
from fxprune.errors import SelectionError

kept = st.lists(st.integers(0, 30), min_size=1, unique=True).map(sorted)
selections = st.dictionaries(st.text("abc.", min_size=1, max_size=4), kept, max_size=4).map(Selection)


@given(selection=selections)
def test_json_gives_the_same_selection(selection: Selection) -> None:
    assert Selection.from_json(selection.to_json()) == selection
    assert Selection.from_json(selection.to_json()).to_json() == selection.to_json()


def test_the_order_of_axes_does_not_matter() -> None:
    one, other = Selection({"a": [0], "b": [1]}), Selection({"b": [1], "a": [0]})
    assert one == other
    assert one.to_json() == other.to_json()


@given(first=kept, data=st.data())
def test_compose_speaks_in_indices_of_the_original(first: list[int], data: st.DataObject) -> None:
    then = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, unique=True).map(sorted))
    composed = Selection({"a": first}).compose(Selection({"a": then}))
    assert list(composed["a"]) == [first[i] for i in then]


def test_compose_keeps_axes_of_both() -> None:
    composed = Selection({"a": [0, 2]}, {"a": 4}).compose(Selection({"b": [1]}, {"b": 2}))
    assert composed == Selection({"a": [0, 2], "b": [1]}, {"a": 4, "b": 2})


def test_only_takes_a_part() -> None:
    assert Selection({"a": [0], "b": [1]}).only({"b", "c"}) == Selection({"b": [1]})


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([], "nothing is kept; keep at least one index"),
        ([1, 0], "must be ascending, distinct and not negative"),
        ([1, 1], "must be ascending, distinct and not negative"),
        ([-1, 0], "must be ascending, distinct and not negative"),
        ([0.5], "must be integers"),
        ([True], "must be integers"),
        ("01", "must be a list of integers"),
        ([[0, 1], [2]], "every unit must keep equally many indices"),
    ],
)
def test_bad_indices_are_refused_with_the_axis(indices: Any, said: str) -> None:
    with pytest.raises(SelectionError, match="axis ffn: ") as caught:
        Selection({"ffn": indices})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other/1", "axes": {}}', '{"format": "fxprune.selection/1"}']
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="this is no selection"):
        Selection.from_json(text)


@pytest.mark.parametrize(
    "axes", ['{"a": 3}', '{"a": null}', '{"a": {"b": 1}}', '{"a": [[1], 2]}', '{"a": [null]}']
)
def test_json_with_bad_indices_is_refused_in_a_sentence(axes: str) -> None:
    with pytest.raises(FxpruneError):
        Selection.from_json(f'{{"format": "fxprune.selection/1", "axes": {axes}}}')


def test_save_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "selection.json"
    Selection({"a": [0]}).save(path)
    with pytest.raises(FxpruneError, match="exists"):
        Selection({"a": [1]}).save(path)
    assert Selection.load(path) == Selection({"a": [0]})
    Selection({"a": [1]}).save(path, overwrite=True)
    assert Selection.load(path) == Selection({"a": [1]})
    assert [file.name for file in tmp_path.iterdir()] == ["selection.json"]


def test_a_path_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="can't read the selection"):
        Selection.load(tmp_path / "missing.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SelectionError):
        Selection.load(tmp_path / "binary")
