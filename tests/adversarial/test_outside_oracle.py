"""Every law about zeros from outside: the eager module, its units silenced by hand in float64, against what `shrink` leaves."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune import Selection, analyze, capture, shrink
from fxprune.analysis import Analysis, Axis, exactness
from fxprune.ir import Program
from fxprune.rules import find_rule, packet_of
from support.models import distance
from support.silenced import INTO, NO_ZEROS, UNITS, Row
from support.silenced_laws import FAMILIES
from support.silenced_values import VALUES
from support.silenced_writes import PARTS

ROWS = [*FAMILIES, *VALUES, *PARTS]
EXACT = [row for row in ROWS if not row.why]
INEXACT = [row for row in ROWS if row.why and not row.pinned]
PINNED = [row for row in ROWS if row.pinned]

KEPT, REMOVED = (0, 3, 4), (1, 2, 5, 6, 7)

#: laws that always say no, and one that always says yes
WITHOUT_EXACT, WITHOUT_COUNTER = {"lose"}, {"zero"}


def example(seed: int = 3) -> Tensor:
    return torch.randn(3, 5, INTO, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@cache
def program_of(row: Row) -> Program:
    return capture(
        row.build(), (example(),), training=True
    )  # which folds no weight: laws are about its computation


def axis_of(row: Row, analysis: Analysis) -> Axis | None:
    """The axis of 8 units along which the row's parameter lies."""
    carried = (a for a in analysis.axes if row.unit in {(member.name, member.dim) for member in a.members})
    return next((axis for axis in carried if axis.size == UNITS), None)


def cut_and_silenced(row: Row, axis: Axis, program: Program) -> tuple[Tensor, Tensor, Tensor]:
    """Results on inputs not seen before: of the program cut, of the eager module silenced by hand, and of it as it is."""
    slim, net, x = shrink(program, Selection({axis.name: KEPT})), row.build(), example(seed=11)
    silenced = copy.deepcopy(net)
    row.silence(silenced, REMOVED)
    with torch.no_grad():
        return slim(x), silenced(x), net(x)


@pytest.mark.parametrize("row", EXACT, ids=lambda row: row.name)
def test_an_exact_axis_equals_the_module_silenced_by_hand(row: Row) -> None:
    program = program_of(row)
    axis = axis_of(row, analyze(program))
    assert axis is not None
    assert (axis.exact, axis.why_inexact) == (True, "")
    slim, silenced, whole = cut_and_silenced(row, axis, program)
    assert distance(slim, silenced) < 1e-10
    assert distance(silenced, whole) > 1e-2


@pytest.mark.parametrize("row", INEXACT, ids=lambda row: row.name)
def test_where_a_law_says_no_the_module_silenced_by_hand_differs(row: Row) -> None:
    program = program_of(row)
    axis = axis_of(row, analyze(program))
    assert axis is not None
    assert (axis.exact, axis.why_inexact) == (False, row.why)
    slim, silenced, _ = cut_and_silenced(row, axis, program)
    assert bool(slim.isfinite().all())
    assert not distance(slim, silenced) < 1e-2  # NaN, too, is a difference


@pytest.mark.parametrize("row", PINNED, ids=lambda row: row.name)
def test_where_no_removal_is_possible_the_axis_is_refused(row: Row) -> None:
    analysis = analyze(program_of(row))
    assert axis_of(row, analysis) is None
    assert [refusal.why for refusal in analysis.refusals if row.unit in refusal.places] == [row.why]


# --- the table --------------------------------------------------------------------------------------------


def law_of(row: Row) -> str:
    """The law of a row's operator; "" for one of several results, which is no operator's."""
    if row.operator is operator.getitem:
        return ""
    rule = find_rule(getattr(row.operator, row.operator.overloads()[0]))
    assert rule is not None
    return rule.zero


def yes(silence: exactness.ZeroPropagation, node: Any) -> frozenset[str]:
    return frozenset()


def never(silence: exactness.ZeroPropagation, node: Any) -> None:
    return None


DECIDED = [row for row in ROWS if law_of(row) and (row.why.startswith(NO_ZEROS) or not row.why)]


@pytest.mark.parametrize("row", DECIDED, ids=lambda row: row.name)
def test_the_law_decides(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the opposite law, the axis of the row would be called the opposite; so none of the nets is decided elsewhere."""
    program = program_of(row)
    opposite: Callable[..., Any] = yes if row.why else never
    own = row.operator in exactness.VALUE
    table: dict[Any, Any] = exactness.VALUE if own else exactness.LAWS
    monkeypatch.setitem(table, row.operator if own else law_of(row), opposite)
    axis = axis_of(row, analyze(program.replace()))
    assert axis is not None
    assert axis.exact is bool(row.why)


def test_each_net_calls_the_operator_whose_law_it_shows() -> None:
    called = {row.name: {packet_of(node.target) for node in program_of(row).graph.nodes} for row in ROWS}
    assert [row.name for row in ROWS if row.operator not in called[row.name]] == []


def test_each_law_has_an_exact_net_and_a_counter_net() -> None:
    exact, counter = ({(law_of(row), row.operator) for row in rows} for rows in (EXACT, [*INEXACT, *PINNED]))
    laws = exactness.LAWS.keys() - {"value"}
    assert laws - {law for law, _ in exact} == WITHOUT_EXACT
    assert laws - {law for law, _ in counter} == WITHOUT_COUNTER
    assert exactness.VALUE.keys() - {operator for _, operator in exact} == set()
    assert exactness.VALUE.keys() - {operator for _, operator in counter} == set()
