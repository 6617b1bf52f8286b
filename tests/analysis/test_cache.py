"""Cache of analyses: one a program, and another one after anything that it was computed from changed."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, analyze, capture
from fxprune.ir import attribute
from fxprune.rewrite import remove_dead
from fxprune.rules import RULES

aten = torch.ops.aten


class Sums(nn.Module):
    """Two sums, each over a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Linear(4, size, bias=False) for size in (6, 5))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.one(x).relu().sum(-1) + self.two(x).relu().sum(-1)
        return total


@pytest.fixture
def program() -> Program:
    return capture(Sums(), (torch.randn(3, 4),))


def sizes(program: Program) -> list[int]:
    return [axis.size for axis in analyze(program).axes]


def test_a_program_is_analysed_once(program: Program) -> None:
    analysis = analyze(program)
    assert analyze(program) is analysis
    other = program.replace(free_inputs=frozenset({"x"}))
    assert analyze(other).program is other
    assert analyze(program) is analysis


def test_values_of_weights_are_no_matter(program: Program) -> None:
    analysis = analyze(program)
    with torch.no_grad():
        for parameter in program.graph_module.parameters():
            parameter.add_(1).requires_grad_(False)
    assert analyze(program) is analysis


def _cut(program: Program) -> None:
    """Make one of the terms the output."""
    output = program.graph.output_node()
    (total,) = output.all_input_nodes
    output.args = ((total.all_input_nodes[1],),)
    remove_dead(program.graph_module)


def _move(program: Program) -> None:
    """Put the second weight into the memory of the first one."""
    one, two = (attribute(program.graph_module, f"{name}.weight") for name in ("one", "two"))
    two.data = one.data[:5]


def _replace(program: Program) -> None:
    """Replace an operator by one that has no rule."""
    node = next(iter(program.graph.find_nodes(op="call_function", target=aten.relu.default)))
    node.target = aten.bernoulli.default


@pytest.mark.parametrize(
    ("edit", "left"),
    [(_cut, [5]), (_move, []), (_replace, [5])],
)
def test_an_edit_in_place_is_seen(program: Program, edit: Callable[[Program], None], left: list[int]) -> None:
    assert sizes(program) == [6, 5]
    edit(program)
    assert sizes(program) == left


def test_another_table_of_rules_is_seen(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizes(program) == [6, 5]
    with monkeypatch.context() as patch:
        patch.delitem(RULES, aten.sum)
        assert sizes(program) == []
    assert sizes(program) == [6, 5]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_copy_is_analysed_for_itself(program: Program) -> None:
    analysis = analyze(program)
    other = copy.deepcopy(program)
    assert analyze(other).program is other
    assert sizes(other) == [6, 5]
    assert analyze(program) is analysis


def test_what_was_analysed_goes_with_its_program(program: Program) -> None:
    other = program.replace()
    held = weakref.ref(other), weakref.ref(analyze(other))
    del other
    gc.collect()
    assert [each() for each in held] == [None, None]
