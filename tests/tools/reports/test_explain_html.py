"""`fxprune explain --html`: boxes, lines and letters; layers that are alike are drawn once, and no two drawn parts overlap."""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze, capture
from fxprune.analysis import Analysis
from fxprune.tools.commands.main import main
from fxprune.tools.reports import report
from fxprune.tools.reports.explain_html import DrawnBox, figure, render_explain
from fxprune.tools.reports.graph_layout import place_nodes
from fxprune.tools.reports.network_diagram import Box, Network, letters, network
from support.drawn import Reader, read
from support.models import captured
from zoo.nets import build

SAMPLE = """
import torch
from torch import nn

class Odd(nn.Linear):
    pass

def net():
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)), (torch.randn(3, 8),), {}
"""


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return out


class Tower(nn.Module):
    """Three layers alike, then one that is wider."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers, self.head = (
            nn.Linear(5, 8),
            nn.ModuleList(Layer() for _ in range(4)),
            nn.Linear(8, 3),
        )
        self.layers[3].up, self.layers[3].down = nn.Linear(8, 20), nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


@cache
def tower() -> Analysis:
    return analyze(capture(Tower().eval(), (torch.randn(2, 5),)))


@cache
def page() -> Reader:
    return read(render_explain("py:<tower>", tower()))


def of(analysis: Analysis) -> Network:
    return network(analysis, [entry["why"] for entry in report.refusals(analysis.refusals)])


def zoo(name: str) -> Analysis:
    model, inputs = build(name)
    return analyze(capture(model, kwargs=inputs))


def shown(box: Box) -> str:
    """`weight: A 12 | 8 [1]`."""
    return "; ".join(
        f"{name}: {' | '.join(''.join(c.text for c in chips) for chips in dims)}" for name, dims in box.lines
    )


def test_layers_that_are_alike_are_drawn_once_and_share_letters() -> None:
    found = of(tower())
    titles = [(section.title, len(section.layers)) for section in found.sections]
    assert titles == [("before the layers", 0), ("layers.0", 3), ("layers.3", 1), ("after layers.3", 0)]
    assert [(g.letter, len(g.axes), g.axes[0].role, g.axes[0].size) for g in found.groups] == [
        ("A", 1, "hidden", 8),
        ("B", 3, "ffn", 12),
        ("C", 1, "ffn", 20),
    ]
    boxes = {box.title: shown(box) for box in found.sections[1].boxes if box.lines}
    assert boxes == {
        "norm": "weight, bias: A 8",
        "up": "weight: B 12 | A 8; bias: B 12",
        "down": "weight: A 8 | B 12; bias: A 8",
    }


def test_lines_say_what_they_carry_and_what_is_done_on_the_way() -> None:
    section = of(tower()).sections[1]
    titles = {box.name: box.title for box in section.boxes}
    lines = {(titles[e.start], titles[e.end]): (e.groups, e.through) for e in section.edges}
    assert lines["up", "down"] == (("B",), ("relu",))
    assert lines["norm", "up"] == (("A",), ())
    assert lines["stem", "norm"] == lines["stem", "add"] == (("A",), ())
    assert ("add", "layers.1") in lines


def test_constants_that_were_folded_hide_no_likeness() -> None:
    """Each layer has its own copies of the cosine and sine tables, under names of no module."""
    pytest.importorskip("transformers")
    found = of(analyze(captured("llama")))
    assert [len(section.layers) for section in found.sections] == [0, 2, 0]
    assert {group.axes[0].role: len(group.axes) for group in found.groups} == {
        "hidden": 1,
        "heads": 2,
        "qk": 2,
        "v": 2,
        "ffn": 2,
    }


def test_what_stays_whole_has_the_number_of_its_reason() -> None:
    found = of(tower())
    ends = {
        box.title: shown(box)
        for section in (found.sections[0], found.sections[-1])
        for box in section.boxes
        if box.lines
    }
    number = {why: i for i, why in enumerate(found.reasons, 1)}
    assert ends["stem"] == f"weight: A 8 | 5 [{number['an input of the graph']}]; bias: A 8"
    out = number["an output of the graph"]
    assert ends["head"] == f"weight: 3 [{out}] | A 8; bias: 3 [{out}]"


def test_the_page_holds_groups_members_and_reasons() -> None:
    text = page().text
    assert "py:<tower>" in text
    assert "up.weight" in text
    assert "layers: layers.0, layers.1, layers.2" in text
    assert "layers.0, layers.1, layers.2: drawn once." in text
    assert "3 dimensions of parameters and buffers, shown for layers.0" in text
    assert "4 layers: can be bypassed" in text
    assert re.search(r"\[\d\] an output of the graph", text)


def test_an_output_shows_the_line_that_makes_it() -> None:
    assert re.search(r"test_explain_html\.py:\d+ in forward out: Tensor = self\.head\(x\)", page().text)


def test_the_page_shows_source_lines() -> None:
    text = read(render_explain("decoder", zoo("decoder"))).text
    assert re.search(r"nets_attention\.py:\d+ in forward \w", text)


def test_groups_are_told_apart_without_colour() -> None:
    marks = {given["data-g"]: given["class"] for given in page().with_class("letter")}
    assert marks == {"A": "letter g0 d0", "B": "letter g1 d1", "C": "letter g2 d2"}
    assert [letters(i) for i in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("decoder", "exact: removal equals zeroing what reads it"),
        (
            "experts-top-two",
            "exact: removal equals never choosing the unit; the others share what was its; at least 2 stay",
        ),
        (
            "experts-scattered-logits",
            "exact: removal equals never choosing the unit (the others share what was its) and zeroing what reads it; at least 2 stay",
        ),
    ],
)
def test_what_removal_equals_is_said(name: str, meaning: str) -> None:
    assert meaning in read(render_explain(name, zoo(name))).text


@pytest.mark.parametrize(
    "name", ["unet", "densenet", "decoder", "rotary", "experts", "lstm", "relative-bias"]
)
def test_any_net_is_drawn_without_overlaps(name: str) -> None:
    analysis = zoo(name)
    read(render_explain(name, analysis))
    found = of(analysis)
    assert {axis.name for group in found.groups for axis in group.axes} == set(analysis.by_name)
    for section in found.sections:
        boxes = figure(section).boxes
        assert not [(a.box.title, b.box.title) for a, b in combinations(boxes, 2) if touch(a, b)]
    chips = {
        c.group for s in found.sections for b in s.boxes for _, dims in b.lines for d in dims for c in d
    } - {""}
    assert chips == {group.letter for group in found.groups}


def touch(a: DrawnBox, b: DrawnBox) -> bool:
    return all(
        a.corner[i] < b.corner[i] + b.size[i] and b.corner[i] < a.corner[i] + a.size[i] for i in (0, 1)
    )


def test_lines_run_downwards_and_past_boxes() -> None:
    sizes = dict.fromkeys("abcd", (60.0, 20.0))
    placed = place_nodes(sizes, [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")])
    tops = [placed.corners[name][1] for name in "abcd"]
    assert tops == sorted(set(tops))
    path = placed.paths["a", "c"]
    assert [y for _, y in path] == sorted(y for _, y in path)
    left, _ = placed.corners["b"]
    assert not left <= path[1][0] <= left + 60
    assert all(x >= 0 and x + 60 <= placed.size[0] for x, _ in placed.corners.values())


def test_a_page_is_written_and_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sample_drawn.py").write_text(SAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    target = tmp_path / "new" / "net.html"
    wanted = ["explain", "py:sample_drawn:net", "--html", str(target)]
    assert main(wanted) == 0
    assert f"drawn in {target}" in capsys.readouterr().out.replace("\n", "")
    assert "0.weight" in read(target.read_text(encoding="utf-8")).text
    target.write_text("mine")
    assert main(wanted) == 2
    assert "exists; give another name, or --force to replace it" in capsys.readouterr().err.replace("\n", " ")
    assert target.read_text() == "mine"
    assert main([*wanted, "--force"]) == 0
    assert "<svg" in target.read_text(encoding="utf-8")
    assert main(["explain", "py:sample_drawn:net", "--html", str(tmp_path)]) == 2
    assert "is a folder; give the name of a file" in capsys.readouterr().err.replace("\n", " ")
