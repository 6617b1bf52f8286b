"""Only the dims that an operator reads stay whole: by nets whose units are zeroed by hand in the user's own module, in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fxprune import Analysis, Axis, Selection, analyze, capture, shrink
from support.texts import Net
from zoo import nets
from zoo.check import captured
from zoo.compare import double

#: net: (size, exact) of each axis
AXES = {
    "windowed-attention": [(8, True), (12, True)],
    "overlapping-attention": [(2, True), (4, True), (4, True)],
    "folded-patches": [(8, True), (12, True)],
    "masked-nodes": [(8, True), (12, True)],
    "image-tokens": [(8, True)],
    "graph-sum": [(8, True), (12, True)],
    "along-time": [(3, False), (4, True), (8, True)],
    "one-chunk": [(8, True)],
    "memory-tokens": [(2, True), (4, False), (4, True), (4, True)],
    "flipped-flow": [(8, True), (8, True), (12, True), (12, True), (12, True), (12, True)],
    "rolled": [(3, True), (4, True), (8, True)],
    "unrolled-neurons": [(8, True)],
    "feature-softmax": [(2, True), (4, False), (6, True)],
    "looped-mixture": [(8, True), (12, True), (12, True), (12, True)],
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", AXES)
def test_dims_that_no_operator_reads_are_axes(name: str, dynamic: bool) -> None:
    found = analyze(captured(*nets.build(name), dynamic=dynamic))
    assert sorted((axis.size, axis.exact) for axis in found.axes) == AXES[name]


@dataclass(frozen=True)
class Row:
    """A unit by one of its positions, (parameter, dim, position), and the weights' positions whose zeros make it silent, by hand."""

    net: str
    unit: tuple[str, int, int]
    silent: dict[str, tuple[int, list[int]]]


ROWS = [
    Row("windowed-attention", ("q.weight", 0, 3), {"q.weight": (0, [3]), "q.bias": (0, [3])}),
    Row("windowed-attention", ("v.weight", 0, 5), {"out.weight": (1, [5])}),
    Row("folded-patches", ("up.weight", 0, 2), {"mix.weight": (1, [2])}),
    Row("folded-patches", ("mix.weight", 0, 4), {"down.weight": (1, [4])}),
    Row("masked-nodes", ("stem.weight", 0, 2), {"up.weight": (1, [2]), "head.weight": (1, [2])}),
    Row("image-tokens", ("image.weight", 0, 3), {"head.weight": (1, [3])}),
    Row("graph-sum", ("a.weight", 0, 1), {"b.weight": (1, [1])}),
    Row("graph-sum", ("b.weight", 0, 7), {"c.weight": (1, [7])}),
    Row("along-time", ("up.weight", 0, 6), {"down.weight": (1, [6])}),
    Row("one-chunk", ("up.weight", 0, 6), {"down.weight": (1, [6])}),
    Row(
        "flipped-flow",
        ("stem.weight", 0, 2),
        {"head.weight": (1, [2]), "up.0.weight": (1, [2]), "up.2.weight": (1, [2])},
    ),
    Row(
        "flipped-flow",
        ("stem.weight", 0, 10),
        {"head.weight": (1, [10]), "up.1.weight": (1, [5]), "up.3.weight": (1, [5])},
    ),
    Row("rolled", ("up.weight", 0, 10), {"down.weight": (1, [2])}),
    Row("rolled", ("more.weight", 0, 4), {"last.weight": (1, [1, 4, 7, 10])}),
    Row("unrolled-neurons", ("side.weight", 0, 5), {"down.weight": (1, [2])}),
    Row(
        "looped-mixture",
        ("stem.weight", 0, 1),
        {"head.weight": (1, [1]), "router.weight": (1, [1])} | {f"up.{i}.weight": (1, [1]) for i in range(3)},
    ),
]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.net}, {row.unit[0]}")
def test_removal_equals_the_users_module_with_zeros_written_by_hand(row: Row, dynamic: bool) -> None:
    module, inputs = nets.build(row.net)
    program = captured(module, inputs, dynamic=dynamic)
    axis, unit = located(analyze(program), *row.unit)
    slim = shrink(program, Selection({axis.name: [i for i in range(axis.size) if i != unit]}))
    with torch.no_grad():
        wanted = silenced(module, row.silent)(**double(inputs))
        whole = silenced(module, {})(**double(inputs))
        got = slim(**inputs)
    assert float((got - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert float((whole - wanted).abs().max()) > 1e-3 * float(whole.abs().max())


def located(analysis: Analysis, name: str, dim: int, position: int) -> tuple[Axis, int]:
    """The axis and the unit that a position of a parameter belongs to."""
    members = [(axis, m) for axis in analysis.axes for m in axis.members if (m.name, m.dim) == (name, dim)]
    found = [(a, unit) for a, m in members for unit in range(a.size) if position in m.indices(unit)]
    return found[0]


def silenced(module: nn.Module, zeros: dict[str, tuple[int, list[int]]]) -> nn.Module:
    copied = copy.deepcopy(module).double()
    with torch.no_grad():
        for name, (dim, positions) in zeros.items():
            copied.get_parameter(name).index_fill_(dim, torch.tensor(positions), 0)
    return copied


def test_a_unit_beside_its_mirror_goes_with_it() -> None:
    """x + flip(x): the first unit and the last are one."""
    net = Net(lambda n, x: n.down(n.up(x) + n.up(x).flip(-1)), up=nn.Linear(6, 7), down=nn.Linear(7, 5))
    axis = analyze(capture(net, (torch.randn(3, 6),))).axes[0]
    assert [(member.name, member.indices(0)) for member in axis.members if member.learned] == [
        ("up.weight", [0, 6]),
        ("up.bias", [0, 6]),
        ("down.weight", [0, 6]),
    ]


def reasons(function: object, x: Tensor, **parts: nn.Module) -> set[str]:
    found = analyze(capture(Net(function, **parts), (x,))).refusals  # type: ignore[arg-type]
    return {each.why for each in found} - {"an input of the graph", "an output of the graph"}


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda n, x: n.down(n.up(x).unfold(-1, 3, 1).sum(-1)[:, :5]), "read with their neighbours"),
        (
            lambda n, x: n.down(torch.conv1d(n.up(x)[:, None], n.kernel)[:, 0, :5]),
            "read with their neighbours",
        ),
        (lambda n, x: n.down(n.up(x).roll(1)[:, :5]), "aten.roll.default of all places in a row"),
        (lambda n, x: n.down(n.up(x).cumprod(-1)[:, :5]), "aten.cumprod.default depends on the order"),
        (lambda n, x: n.down(n.up(x).diff(dim=-1)[:, :5]), "aten.diff.default depends on the order"),
        (lambda n, x: n.down(n.up(x).sort(-1).values[:, :5]), "aten.sort.default gives positions along it"),
        (lambda n, x: n.down(n.up(x)[:, n.mask]), "a mask chooses among its positions"),
        (lambda n, x: n.down(x[:, :5]) + (n.up(x) > 0).nonzero().sum(), "lists positions along it"),
        (lambda n, x: n.down(x[:, :5]) + torch.where(n.up(x) > 0)[0].sum(), "lists positions along it"),
    ],
)
def test_dims_that_are_read_stay_whole_for_that_reason(function: object, why: str) -> None:
    parts = {"up": nn.Linear(6, 8), "down": nn.Linear(5, 5), "kernel": nn.Parameter(torch.randn(1, 1, 2))}
    mask = nn.Buffer(torch.arange(8) < 5)
    assert any(why in each for each in reasons(function, torch.randn(3, 6), **parts, mask=mask))  # type: ignore[arg-type]


def test_groups_that_straddle_a_concatenation_say_so() -> None:
    found = analyze(captured(*nets.build("straddling-norm"), dynamic=False)).refusals
    assert "12 blocks of 3 straddle the borders of a concatenation, 10 + 26" in {each.why for each in found}


def test_softmax_over_units_is_inexact_and_says_where() -> None:
    found = analyze(captured(*nets.build("feature-softmax"), dynamic=False)).axes
    whys = {axis.why_inexact for axis in found if not axis.exact}
    assert whys == {"softmax over it at softmax: the shares of the others change"}
