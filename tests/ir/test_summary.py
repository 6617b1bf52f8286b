"""Summaries: programs, analyses and selections as text, as HTML and as a table of rich."""

from __future__ import annotations

import io
from html.parser import HTMLParser

from rich.console import Console

from fxprune import Selection, analyze
from fxprune.ir import Summary
from fxprune.ir.summary import LIMIT
from support.models import captured

SMALL = Summary("Two <b>", ("name", "size"), (("a&b", "1"), ("[bold]c[0]", "22")), ("a note", "3 < 4"))


def on_console(value: object) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(value)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Cells(HTMLParser):
    """The text of each element, and the tags that are open at the end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.texts = list[str](), list[tuple[str, str]]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1], data))


def test_text_is_aligned() -> None:
    assert SMALL.text().splitlines() == [
        "Two <b>",
        "name        size",
        "a&b         1",
        "[bold]c[0]  22",
        "a note",
        "3 < 4",
    ]


def test_without_rows_there_is_no_header() -> None:
    empty = Summary("None", ("name", "size"))
    assert empty.text() == "None"
    assert Cells(empty.html()).texts == [("caption", "None")]


def test_html_is_escaped_and_closed() -> None:
    cells = Cells(SMALL.html())
    assert cells.open == []
    assert cells.texts == [
        ("caption", "Two <b>"),
        ("th", "name"),
        ("th", "size"),
        ("td", "a&b"),
        ("td", "1"),
        ("td", "[bold]c[0]"),
        ("td", "22"),
        ("div", "a note"),
        ("div", "3 < 4"),
    ]


def test_rich_shows_brackets_as_they_are() -> None:
    lines = [line.strip() for line in on_console(SMALL.rich()).splitlines()]
    assert lines[0] == "Two <b>"
    assert "│ [bold]c[0] │ 22   │" in lines
    assert lines[-2:] == ["a note", "3 < 4"]


def test_of_many_rows_the_rest_is_counted() -> None:
    many = Summary("Many", ("number of a row",), tuple((str(i),) for i in range(LIMIT + 7)), ("a note",))
    assert many.text().splitlines()[-3:] == [str(LIMIT - 1), "… and 7 more", "a note"]
    assert [text for tag, text in Cells(many.html()).texts if tag == "div"] == ["… and 7 more", "a note"]
    assert "… and 7 more" in on_console(many.rich())


PROGRAM = """\
Program: 160 operators, 24,928 parameters, 100,240 bytes
        name            dtype    shape        free dims
input   input_ids       int64    3 × 13       0, 1
input   attention_mask  int64    3 × 13       0, 1
output  logits          float32  3 × 13 × 99  0, 1"""


def test_a_program_lists_its_inputs_and_outputs() -> None:
    program = captured("llama", dynamic=True)
    assert str(program) == PROGRAM
    assert repr(program) == "<Program: 160 operators, 24,928 parameters, 100,240 bytes>"
    assert ("td", "3 × 13 × 99") in Cells(program._repr_html_()).texts
    assert "│ output │ logits         │ float32 │ 3 × 13 × 99 │ 0, 1      │" in on_console(program)


def test_an_analysis_lists_its_axes_and_counts_refusals_and_regions() -> None:
    analysis = analyze(captured("llama"))
    lines = str(analysis).splitlines()
    assert lines[:4] == [
        "Analysis: 11 axes, 2 refusals",
        "axis                          role    size  exact  members",
        "hidden                        hidden  32    no     21",
        "model.layers.0.self_attn.kv   heads   2     yes    4",
    ]
    assert lines[-1] == "regions that can go: 2 layers, 4 branches"
    assert repr(analysis) == "<Analysis: 11 axes, 2 refusals>"
    assert ("td", "model.layers.1.mlp.ffn") in Cells(analysis._repr_html_()).texts
    assert "│ model.layers.1.mlp.ffn       │ ffn    │ 64   │ yes   │ 3       │" in on_console(analysis)


def test_a_selection_lists_what_its_axes_keep() -> None:
    selection = Selection(
        {"h": [0, 2], "qk": [[0, 1, 2], [1, 2, 3]]}, {"h": 4}, {"qk": "h"}, removed=("layers.1", "layers.3")
    )
    assert str(selection).splitlines() == [
        "Selection: 2 axes, 2 regions removed",
        "axis  kept  of  for each unit of",
        "h     2     4",
        "qk    3     ?   h",
        "removed: layers.1, layers.3",
    ]
    assert str(Selection()) == "Selection: 0 axes"
    assert (
        repr(Selection({"h": [0]}))
        == "Selection(axes={'h': (0,)}, sizes={}, within={}, model='', removed=())"
    )
    assert ("div", "removed: layers.1, layers.3") in Cells(selection._repr_html_()).texts
    assert "│ qk   │ 3    │ ?  │ h                │" in on_console(selection)
