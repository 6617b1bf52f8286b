# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Scopes: patterns of module paths and roles say which axes, regions and weights a pass may touch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, parse_pipeline
from fxprune.errors import PipelineError, UsageError
from fxprune.ir import Program
from fxprune.pipeline import Context
from fxprune.pipeline.scope import Scope, is_matched
from support.models import captured


class Detector(nn.Module):
    """A backbone and a head of two convolutions each; the last channels of the backbone are the first of the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 10, 1))
        self.head = nn.Sequential(nn.Conv2d(10, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).relu())


def detector() -> Program:
    return capture(Detector(), (torch.randn(1, 3, 4, 4),))


def sizes(text: str) -> list[tuple[int, ...]]:
    """The output channels of the four convolutions after a pipeline."""
    slim = parse_pipeline(text).run(detector()).program
    return [tuple(v.shape[:2]) for name, v in slim.parameters().items() if name.endswith("weight")]


@pytest.mark.parametrize(
    ("pattern", "name", "matched"),
    [
        ("backbone", "backbone.0.weight", True),
        ("backbone.*", "backbone.0.weight", True),
        ("backbone", "backbone_2.0.weight", False),
        ("*.norm", "layers.3.norm.weight", True),
        ("*.1", "layers.10.weight", False),
        ("layers.[13]", "layers.3.up.weight", True),
        ("table", "table", True),
    ],
)
def test_a_pattern_matches_a_parameter_or_a_module_around_it(pattern: str, name: str, matched: bool) -> None:
    assert is_matched([pattern], name) is matched


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("channels(ratio=0.5)", [(4, 3), (5, 4), (6, 5), (4, 6)]),
        ("channels(ratio=0.5, only='backbone.*')", [(4, 3), (10, 4), (12, 10), (4, 12)]),
        ("channels(ratio=0.5, only='backbone, head')", [(4, 3), (5, 4), (6, 5), (4, 6)]),
        ("channels(ratio=0.5, skip='head.*')", [(4, 3), (10, 4), (12, 10), (4, 12)]),
        ("channels(ratio=0.5, skip='backbone.0')", [(8, 3), (5, 8), (6, 5), (4, 6)]),
        ("channels(ratio={'backbone.*': 0.25, 'head.*': 0.5})", [(6, 3), (8, 6), (6, 8), (4, 6)]),
        ("channels(ratio={'backbone.*': 0.25, 'head.*': 0})", [(6, 3), (10, 6), (12, 10), (4, 12)]),
        ("channels(ratio={'head': 0.5})", [(8, 3), (10, 8), (6, 10), (4, 6)]),
        ("ffn(ratio=0.5, roles='channels', skip='head')", [(4, 3), (10, 4), (12, 10), (4, 12)]),
        (
            "slim(params=0.8, score='magnitude', repair='none', only='head')",
            [(8, 3), (10, 8), (7, 10), (4, 7)],
        ),
    ],
)
def test_what_lies_outside_keeps_its_sizes(text: str, kept: list[tuple[int, ...]]) -> None:
    assert sizes(text) == kept


def test_an_axis_at_the_border_is_left_out_and_named() -> None:
    (step,) = parse_pipeline("channels(ratio=0.5, only='backbone.*')").run(detector()).steps
    border = next(axis.name for axis in analyze(detector()).axes if axis.size == 10)
    why = "head.0.weight does not match only='backbone.*'"
    assert step.remarks == (f"left out 1 that reach beyond its patterns: {border} ({why})",)


@pytest.mark.parametrize(
    "text",
    [
        "channels(ratio=0.5, only='backbone.*', skip='*.norm, head')",
        "slim(params=0.5, roles='ffn', only='encoder.*')",
        "heads(ratio={'encoder.layer.0': 0.5, '*': 0.25})",
        "layers(count=1, only='encoder.layer.1')",
        "grain(density=0.5, skip='encoder.layer.0')",
    ],
)
def test_the_options_print_back(text: str) -> None:
    assert str(parse_pipeline(text)) == text
    assert parse_pipeline(str(parse_pipeline(text))) == parse_pipeline(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "channels(ratio=0.5, only='backbon.*')",
            (
                "channels(ratio=0.5, only='backbon.*'): only: 'backbon.*' matches no module of this program;"
                " nearest: backbone, backbone.2, backbone.0"
            ),
        ),
        (
            "empty(skip='zzz')",
            "empty(skip='zzz'): skip: 'zzz' matches no module of this program; it has backbone, head",
        ),
        (
            "channels(ratio={'heed': 0.5})",
            "channels(ratio={'heed': 0.5}): ratio: 'heed' matches no module of this program; nearest: head, head.2, head.0",
        ),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pipeline(text).run(detector())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ffn(0.5, roles='fnn')",
            (
                "roles must be some of experts, heads, qk, v, rank, groups, hidden, channels, ffn, other,"
                " got 'fnn'"
            ),
        ),
        ("ffn(ratio={'a': 2})", "ratio must lie in [0, 1), got 2"),
        ("ffn(ratio='x')", "ffn: ratio must be a number or {pattern: number}, got 'x'"),
        ("fold(only='a')", "fold has no option 'only'; options: none"),
    ],
)
def test_options_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text)
    assert str(caught.value).partition("\n")[0] == message


def test_layers_heads_and_ranks_of_one_layer_of_bert() -> None:
    program = captured("bert")

    def run(text: str) -> Selection:
        return parse_pipeline(text).run(program).selection

    assert run("layers(count=1, only='encoder.layer.0')").removed == ("encoder.layer.0",)
    assert run("layers(count=1, unit='branch', roles='heads', skip='encoder.layer.1')").removed == (
        "encoder.layer.0.attention.branch",
    )
    assert list(run("heads(ratio=0.25, only='encoder.layer.1')")) == ["encoder.layer.1.attention.heads"]
    found = parse_pipeline("lowrank(rank=8, whiten=False, update='none', only='*.layer.1', roles='ffn')")
    (step,) = found.run(program, Context(cache=False)).steps
    assert {name for row in step.details["ranks"] for name in row["weights"]} == {
        "encoder.layer.1.intermediate.dense.weight",
        "encoder.layer.1.output.dense.weight",
    }


def test_gates_and_empty_units_within_a_scope() -> None:
    program = captured("bert")
    text = (
        "grain(density=0.5, only='encoder.layer.1'), blocks(density=0.5, skip='encoder.layer.1', roles='ffn')"
    )
    grain, blocks = parse_pipeline(text).passes
    assert {g.of.split(".")[2] for g in grain.gated(program).gates} == {"1"}  # type: ignore[attr-defined]
    assert [g.of for g in blocks.gated(program).gates] == ["encoder.layer.0.ffn"]  # type: ignore[attr-defined]


def test_zeros_outside_stay() -> None:
    net: Any = Detector()
    with torch.no_grad():
        net.backbone[0].weight[:3], net.backbone[0].bias[:3] = 0, 0
        net.head[2].weight[:, :5] = 0
    program = capture(net, (torch.randn(1, 3, 4, 4),))
    found = {text: parse_pipeline(text).run(program).program for text in ("empty", "empty(only='head')")}
    shapes = {
        text: [v.shape[0] for n, v in slim.parameters().items() if n.endswith("weight")]
        for text, slim in found.items()
    }
    assert shapes == {"empty": [5, 10, 7, 4], "empty(only='head')": [8, 10, 7, 4]}


def test_a_region_without_parameters_is_matched_by_its_name() -> None:
    analysis = analyze(captured("bert"))
    region = analysis.regions[0]
    assert Scope(analysis, only=("encoder",)).takes(region)
    assert not Scope(analysis, skip=("encoder.layer.0",)).takes(region)
