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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('"sizes": [4]', '"sizes" must be an object of integers, got [4]'),
        ('"sizes": {"a": "4"}', "must be an object of integers, got {'a': '4'}"),
        ('"sizes": {"a": true}', "must be an object of integers, got {'a': True}"),
        ('"within": {"a": 3}', '"within" must be an object of names'),
        ('"model": 5', '"model" must be a text, got 5'),
        ('"removed": "layers.0"', "\"removed\" must be a list of names, got 'layers.0'"),
        ('"removed": [[]]', '"removed" must be a list of names'),
        ('"removed": false', '"removed" must be a list of names, got False'),
        ('"axes": {}', "the key 'axes' occurs twice"),
        (f'"sizes": {{"a": {"9" * 5000}}}', "a number of 5000 digits"),
        (f'"sizes": {"[" * 100_000}', "nested too deeply"),
    ],
)
def test_a_field_of_another_form_is_named(more: str, said: str) -> None:
    with pytest.raises(SelectionError, match="this is no selection: ") as caught:
        Selection.from_json(f'{{"format": "fxprune.selection/1", "axes": {{"a": [0]}}, {more}}}')
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("path", "why"),
    [("o" * 300, "File name too long"), ("nul\0", "embedded null byte"), (".", "Is a directory")],
)
def test_a_file_that_can_not_be_read_is_a_sentence(path: str, why: str) -> None:
    with pytest.raises(SelectionError, match=f"can't read the selection .*{why}"):
        Selection.load(path)
