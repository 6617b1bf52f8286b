"""Traits: a product of a third party is re-fitted, factorized and pruned by one rule and one row, and no other table repeats rows."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, register_rule, shrink, verify
from fxprune.analysis import matrices
from fxprune.calibration import Calibration
from fxprune.calibration.repair import HELD_BACK, repair
from fxprune.cost.count import count_flops
from fxprune.errors import RefusedError, RuleError
from fxprune.gates.partition import partition
from fxprune.ir import Program
from fxprune.rewrite.factorize import factorize
from fxprune.rewrite.merge_factors import merge_factors, pairs
from fxprune.rules import REFUSED, RULES, Linear, Trait, find_rule, packet_of, register_trait, traits_of
from fxprune.rules.traits import TRAITS
from support.models import distance

aten = torch.ops.aten
ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "fxprune_traits"


def product(data: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    found = data @ matrix
    return found if shift is None else found + shift


@pytest.fixture(scope="module")
def library() -> Iterator[Any]:
    """A product of others whose weight is stored turned, under names of its own."""
    made = torch.library.Library(LIBRARY, "DEF")
    made.define("product(Tensor data, Tensor matrix, Tensor? shift=None) -> Tensor")
    made.impl("product", product, "CPU")
    torch.library.register_fake(f"{LIBRARY}::product", product, lib=made)
    yield getattr(torch.ops, LIBRARY)
    del made


@pytest.fixture
def registered(library: Any) -> Iterator[Any]:
    """The product, with one rule and one row."""
    register_rule(library.product, notation="* i, i o, o? -> * o", zero="affine")
    register_trait(library.product, linear=Linear("data", "matrix", "shift", turned=True))
    yield library.product
    del RULES[library.product], TRAITS[library.product]


class Net(nn.Module):
    """Two layers of a product, and of `Linear`, with the same weights."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.up, self.up_bias = nn.Parameter(torch.randn(6, 16) / 3), nn.Parameter(torch.randn(16))
        self.down, self.down_bias = nn.Parameter(torch.randn(16, 5) / 4), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.function(x, self.up, self.up_bias).relu(), self.down, self.down_bias)


def linear(data: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    return nn.functional.linear(data, matrix.t(), shift)


def net(function: Callable[..., Tensor]) -> Program:
    return capture(Net(function).eval(), (normal(7, 6),))


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def outputs(program: Program) -> Any:
    return program(*program.args, **program.kwargs)


# --- a product of a third party ---------------------------------------------------------------------------


def test_without_rule_and_row_it_is_left_alone(library: Any) -> None:
    program = net(library.product)
    assert analyze(program).axes == ()
    assert matrices(program, analyze(program).flow) == {}
    with pytest.raises(RefusedError, match="which no two products can stand for"):
        factorize(program, {"up": 2})


def test_its_nodes_are_matrices(registered: Any) -> None:
    program = net(registered)
    found = matrices(program, analyze(program).flow)
    assert [(m.weight, m.bias, m.turned, m.outputs) for m in found.values()] == [
        ("up", "up_bias", True, 1),
        ("down", "down_bias", True, 1),
    ]


def test_its_axis_is_exact_pruned_and_proved(registered: Any) -> None:
    program = net(registered)
    (axis,) = analyze(program).axes
    assert (axis.size, axis.exact, axis.readers) == (16, True, ("down",))
    selection = Selection({axis.name: range(1, 16, 3)})
    slim = shrink(program, selection)
    assert slim.tensors()["down"].shape == (5, 5)
    assert verify(program, slim, selection).relative < 1e-5


def test_it_is_refitted_by_least_squares(registered: Any) -> None:
    """As a linear layer of the same weights is, and as well as torch's own solver does it."""
    program, plain = net(registered), net(linear)
    data = Calibration(tuple({"x": normal(7, 6, seed=seed)} for seed in range(160)))
    refitted = []
    for each in (program, plain):
        selection = Selection({axis.name: range(10) for axis in analyze(each).axes})
        refitted.append(repair(each, shrink(each, selection), selection, data, "readers"))
    ours, theirs = refitted
    (fit,) = ours.matrices
    assert (fit.name, fit.how) == ("down", "ridge 0.001")
    assert fit.after == pytest.approx(theirs.matrices[0].after, rel=1e-6)
    assert torch.allclose(ours.program.tensors()["down"], theirs.program.tensors()["down"], atol=1e-6)
    rows = torch.cat([batch["x"] for batch in data.split(HELD_BACK, program)[0].batches])
    assert error_of(ours.program, program, rows) == pytest.approx(least_error(program, rows, 10), rel=0.01)


def tensors_of(program: Program) -> tuple[Tensor, ...]:
    names = ("up", "up_bias", "down", "down_bias")
    return tuple(program.tensors()[name].detach().double() for name in names)


def error_of(slim: Program, program: Program, x: Tensor) -> float:
    (up, up_bias, down, bias), (one, one_bias, other, other_bias) = tensors_of(program), tensors_of(slim)
    wanted = (x.double() @ up + up_bias).relu() @ down + bias
    got = (x.double() @ one + one_bias).relu() @ other + other_bias
    return float((got - wanted).square().sum())


def least_error(program: Program, x: Tensor, kept: int) -> float:
    """The error of the best weights and biases behind the first units."""
    up, up_bias, down, bias = tensors_of(program)
    hidden = (x.double() @ up + up_bias).relu()
    wanted = hidden @ down + bias
    some = torch.cat([hidden[:, :kept], torch.ones(len(hidden), 1)], 1)
    return float((some @ (torch.linalg.pinv(some) @ wanted) - wanted).square().sum())


def test_its_factors_change_nothing_and_merge_back(registered: Any) -> None:
    program = net(registered)
    apart = factorize(program, {"up": 6, "down": 5}).program
    assert distance(outputs(apart), outputs(program)) < 1e-5
    assert sorted((axis.size, axis.role, axis.exact) for axis in analyze(apart).axes) == [
        (5, "rank", True),
        (6, "rank", True),
        (16, "other", True),
    ]
    whole = merge_factors(apart)
    assert (len(pairs(apart)), len(pairs(whole))) == (2, 0)
    assert {n: v.shape for n, v in whole.tensors().items()} == {
        n: v.shape for n, v in program.tensors().items()
    }
    assert distance(outputs(whole), outputs(program)) < 1e-5


def test_it_is_computed_in_parts_and_counted(registered: Any) -> None:
    program = net(registered)
    analysis = analyze(program)
    apart = partition(analysis, analysis.axes[0], [range(4), range(4, 16)])
    assert sum(node.target is registered.default for node in apart.graph.nodes) == 4
    assert distance(outputs(apart), outputs(program)) < 1e-5
    assert count_flops(program) == count_flops(net(linear)) == 2 * 7 * (6 * 16 + 16 * 5)


# --- the table --------------------------------------------------------------------------------------------


def test_one_operator_has_one_row_of_known_kinds(registered: Any) -> None:
    with pytest.raises(RuleError, match=r"fxprune_traits\.product has traits already: one operator, one row"):
        register_trait(registered, moves="view")
    with pytest.raises(RuleError, match="no kind of operator is called 'shuffle'; kinds: view, flatten"):
        register_trait(aten.channel_shuffle, moves="shuffle")
    with pytest.raises(RuleError, match=r"has no argument bias, x; arguments: self, groups"):
        register_trait(aten.channel_shuffle, linear=Linear("x", "self", "bias"))
    assert aten.channel_shuffle not in TRAITS


def test_a_row_is_found_by_overload_packet_and_name(registered: Any) -> None:
    assert traits_of(registered.default) is traits_of(registered) is TRAITS[registered]
    assert (traits_of(aten.view.default).moves, traits_of(aten.view.dtype).moves) == ("view", "")
    assert traits_of(aten.repeat_interleave.self_Tensor).moves == "pick"
    assert traits_of("x") == traits_of(torch.relu) == Trait()
    register_trait("fxprune_traits::absent", divides="x")
    del TRAITS["fxprune_traits::absent"]


def test_every_row_has_a_rule_or_a_refusal() -> None:
    """Operators that only check have neither: capture removes them."""
    bare = [
        str(key)
        for key, row in TRAITS.items()
        if not row.asserts and packet_of(key) not in REFUSED and not any(map(find_rule, overloads(key)))
    ]
    assert bare == []


def overloads(key: Any) -> list[Any]:
    is_packet = isinstance(key, torch._ops.OpOverloadPacket)
    return [getattr(key, name) for name in key.overloads()] if is_packet else [key]


#: tables of operators outside `rules/`, whose rows are functions, not facts
ALLOWED = {
    "fxprune/analysis/exactness.py": "the laws about zeros that depend on arguments",
    "fxprune/analysis/roles.py": "operators that sum weighted values, and the argument that they sum",
    "fxprune/analysis/constant_propagation.py": "the masks of single operators",
    "fxprune/export/onnx_rewrites.py": "how operators are written for torch's ONNX exporter",
    "fxprune/export/onnx_forms/spatial.py": "how adaptive pools are written for it",
    "fxprune/export/onnx_forms/reductions.py": "how running values are written for it",
    "fxprune/export/onnx_forms/elementwise.py": "the numbers at which an operator is its operand",
    "fxprune/training/recovery/distances.py": "what an output that an operator normalises is compared by",
    "fxprune/frontend/canonicalization/recurrent_layers.py": "operators of several layers, and where creations have their sizes",
    "fxprune/rewrite/vocabulary.py": "comparisons with their operands swapped",
    "fxprune/export/real_pairs.py": "operators on complex numbers by their real parts",
    "fxprune/cost/count.py": "torch's formulas for operators that it lacks",
}


def test_no_table_of_operators_repeats_rows() -> None:
    places = [path for top in ("fxprune", "passes", "tools") for path in sorted((ROOT / top).rglob("*.py"))]
    own = [
        path
        for path in places
        if "rules" not in path.parts and not path.is_relative_to(ROOT / "fxprune/passes")
    ]
    found = {str(path.relative_to(ROOT)) for path in own if tables(ast.parse(path.read_text()))}
    assert found == ALLOWED.keys()


def test_a_table_of_operators_is_seen() -> None:
    code = "SUMS = {aten.mm: 1, aten.bmm: 2, torch.ops.aten.addmm.default: 3}"
    assert tables(ast.parse(code)) == ["SUMS"]
    assert tables(ast.parse('X = packets("mm bmm")')) == ["X"]
    assert tables(ast.parse("PAIR = (aten.mm, aten.bmm, aten.mm.default)")) == []


def tables(tree: ast.Module) -> list[str]:
    """The names at the top level of a module that are assigned three ATen operators or more."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value]
    names = [node.targets[0] if isinstance(node, ast.Assign) else node.target for node in assigned]
    return [
        ast.unparse(name)
        for name, node in zip(names, assigned, strict=True)
        if node.value and is_table(node.value)
    ]


def is_table(value: ast.expr) -> bool:
    nodes = list(ast.walk(value))
    operators = {n.attr for n in nodes if isinstance(n, ast.Attribute) and is_aten(n.value)}
    return len(operators) > 2 or any(isinstance(n, ast.Name) and n.id == "packets" for n in nodes)


def is_aten(node: ast.expr) -> bool:
    return ast.unparse(node) in ("aten", "torch.ops.aten")
