"""Nested axes: each head keeps its own dimensions, each group its channels, each expert its neurons, equally many each."""

import random

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, Proof, Selection, analyze, capture, parse_pipeline, shrink, verify
from fxprune.errors import SelectionError
from support.models import captured
from zoo import nets


def own_rows(program: Program, seed: int) -> Selection:
    """A random choice for each head of every axis that allows it."""
    draw, analysis = random.Random(seed), analyze(program)
    rows: dict[str, list[list[int]]] = {}
    within: dict[str, str] = {}
    for axis in analysis.axes:
        outer = analysis.within(axis.name)
        if axis.role in ("qk", "v") and outer:
            count, within[axis.name] = draw.randint(1, axis.size - 1), outer[0]
            units = range(analysis.axis(outer[0]).size)
            rows[axis.name] = [sorted(draw.sample(range(axis.size), count)) for _ in units]
    return Selection(rows, within=within)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_heads_keep_their_own_dimensions(name: str, seed: int) -> None:
    program = captured(name)
    selection = own_rows(program, seed)
    assert len(selection) == 4
    assert verify(program, shrink(program, selection), selection).relative <= 1e-5


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_rows_compose_with_heads_before_and_after(name: str) -> None:
    program = captured(name)
    before = parse_pipeline("heads(ratio=0.5)").run(program)
    rows = own_rows(before.program, 0)
    after = parse_pipeline("heads(ratio=0.5), ffn(ratio=0.5)").run(shrink(before.program, rows))
    whole = before.selection.compose(rows).compose(Selection(after.selection.axes))
    assert verify(program, after.program, whole).relative <= 1e-5
    assert Selection.from_json(whole.to_json()) == whole


def test_a_table_that_all_heads_share_forbids_it() -> None:
    program = captured("llama")
    name = "model.layers.0.self_attn.qk"
    assert analyze(program).within(name) == ()
    with pytest.raises(SelectionError, match=r"keeps the same indices everywhere \(.* has it alone\)"):
        shrink(program, Selection({name: [[0, 1], [1, 2]]}))


def test_rows_must_be_equally_long_and_one_for_each_unit() -> None:
    name = "encoder.layer.0.attention.self.qk"
    with pytest.raises(SelectionError, match=r"equally many indices, got \[2, 1\]"):
        Selection({name: [[0, 1], [2]]})
    with pytest.raises(SelectionError, match="say within which axis the rows run"):
        shrink(captured("bert"), Selection({name: [[0], [1]]}))


class Grouped(nn.Module):
    """Four groups of three channels in and two out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.b(self.a(x).relu()).relu())
        return y


def proved(program: Program, name: str, outer: str, rows: list[list[int]]) -> Proof:
    assert analyze(program).within(name) == (outer,)
    selection = Selection({name: rows}, within={name: outer})
    return verify(program, shrink(program, selection), selection)


def test_groups_keep_their_own_channels() -> None:
    program = capture(Grouped(), (torch.randn(2, 3, 6, 6),))
    for name, rows in (
        ("a.channels", [[0, 1], [1, 2], [0, 2], [0, 1]]),
        ("b.channels", [[0], [1], [1], [0]]),
    ):
        verdict = proved(program, name, "groups", rows)
        assert verdict.relative <= 1e-5 < verdict.change


@pytest.mark.parametrize(("name", "axis"), [("experts", "ffn"), ("experts-switch", "v")])
def test_experts_keep_their_own_neurons(name: str, axis: str) -> None:
    module, inputs = nets.build(name)
    program = capture(module, kwargs=inputs)
    size = {a.name: a.size for a in analyze(program).axes}
    rows = [[i % size[axis], (i + 3) % size[axis]] for i in range(size["experts"])]
    verdict = proved(program, axis, "experts", [sorted(row) for row in rows])
    assert verdict.relative <= 1e-5 < verdict.change
