# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Each rule against the operator itself: operands cut along the claimed axes give the cut result (see one_operator.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fxprune import Selection, analyze, capture, register_rule, shrink, zero_readers
from fxprune.errors import RuleError
from fxprune.rules import REFUSED, RULES, find_rule, packet_of
from support.models import distance
from support.one_operator import check
from support.samples import COMPOSED

aten = torch.ops.aten


def r(*sizes: int) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(sizes) + len(sizes))
    return torch.randn(sizes, dtype=torch.float64, generator=generator)


Case = tuple[str, Callable[..., Any], tuple[Any, ...], int]

#: (name, function, operands, how many axes the rule must find exact)
CASES: list[Case] = [
    ("linear", F.linear, (r(4, 6), r(8, 6), r(8)), 3),
    ("mm", torch.mm, (r(4, 6), r(6, 8)), 3),
    ("mv", torch.mv, (r(4, 6), r(6)), 2),
    ("dot", torch.dot, (r(6), r(6)), 1),
    ("outer", torch.outer, (r(4), r(6)), 2),
    ("outer of itself", lambda x: torch.outer(x, x).sum(0), (r(6),), 1),
    ("addmm", torch.addmm, (r(8), r(4, 6), r(6, 8)), 3),
    ("baddbmm", torch.baddbmm, (r(2, 1, 8), r(2, 4, 6), r(2, 6, 8)), 4),
    ("bmm", torch.bmm, (r(2, 4, 6), r(2, 6, 8)), 4),
    ("matmul of a vector", torch.matmul, (r(6), r(2, 6, 8)), 3),
    ("matmul that broadcasts", torch.matmul, (r(3, 1, 4, 6), r(2, 6, 8)), 5),
    ("bilinear", F.bilinear, (r(4, 6), r(4, 5), r(8, 6, 5), r(8)), 4),
    ("einsum", lambda a, b: torch.einsum("bhd,bed->bhe", a, b), (r(2, 4, 6), r(2, 5, 6)), 4),
    ("einsum, trace", lambda a: torch.einsum("bii->b", a), (r(2, 6, 6),), 2),
    ("conv1d", F.conv1d, (r(2, 6, 9), r(8, 6, 3), r(8)), 3),
    ("conv2d in groups", lambda x, w: F.conv2d(x, w, groups=3), (r(2, 12, 5, 5), r(6, 4, 3, 3)), 4),
    ("conv2d by depth", lambda x, w: F.conv2d(x, w, groups=6), (r(2, 6, 5, 5), r(12, 1, 3, 3)), 3),
    ("conv_transpose2d", F.conv_transpose2d, (r(2, 6, 5, 5), r(6, 8, 3, 3), r(8)), 3),
    (
        "conv_transpose2d in groups",
        lambda x, w: F.conv_transpose2d(x, w, groups=3),
        (r(2, 6, 5, 5), r(6, 4, 3, 3)),
        4,
    ),
    ("view", lambda x: x.view(4, 3, 2, 5), (r(12, 10),), 4),
    ("flatten", lambda x: x.flatten(1), (r(3, 4, 5),), 3),
    ("unflatten", lambda x: x.unflatten(1, (2, 3)), (r(4, 6),), 3),
    ("permute", lambda x: x.permute(2, 0, 1), (r(3, 4, 5),), 3),
    ("movedim", lambda x: x.movedim((0, 1), (2, 0)), (r(3, 4, 5),), 3),
    ("expand", lambda x, y: x.expand(4, 6) * y, (r(1, 6), r(4, 6)), 2),
    ("repeat", lambda x: x.repeat(2, 3), (r(4, 6),), 2),
    ("repeat_interleave", lambda x: x.repeat_interleave(3, dim=1, output_size=18), (r(4, 6),), 2),
    ("cat", lambda x, y: torch.cat([x, y], dim=1), (r(4, 6), r(4, 5)), 3),
    ("stack", lambda x, y: torch.stack([x, y], dim=1), (r(4, 6), r(4, 6)), 2),
    ("split", lambda x: x.split([2, 4], dim=1), (r(4, 6),), 3),
    ("chunk", lambda x: x.chunk(2, dim=-1), (r(4, 6),), 3),
    ("unbind", lambda x: x.unbind(0), (r(3, 6),), 1),
    ("slice", lambda x: x[:, 2:5], (r(4, 8),), 4),
    ("slice from the end", lambda x: x[:, -3:-1], (r(4, 8),), 3),
    ("slice with a step", lambda x: x[:, 1::2], (r(4, 8),), 2),
    ("slice with a step to its end", lambda x: torch.ops.aten.slice(x, 1, 0, 8, 2), (r(4, 8),), 2),
    ("select", lambda x: x[:, 3], (r(4, 8),), 3),
    ("select from the end", lambda x: x[:, -2], (r(4, 8),), 2),
    ("constant pad", lambda x, y: F.pad(x, (2, 3)) + y, (r(4, 6), r(4, 11)), 4),
    ("reflect pad", lambda x: F.pad(x, (1, 1), mode="reflect"), (r(2, 4, 6),), 2),
    ("index", lambda x: x[:, torch.tensor([0, 2, 2])], (r(4, 6, 5),), 2),
    ("gather", lambda x: x.gather(1, torch.tensor([[0, 1], [2, 0], [1, 1]])), (r(3, 5),), 1),
    ("embedding", lambda w: F.embedding(torch.tensor([1, 4, 1]), w), (r(6, 8),), 1),
    ("index_add", lambda x, y: x.index_add(1, torch.tensor([0, 2, 0]), y), (r(4, 5), r(4, 3)), 1),
    ("sum", lambda x: x.sum(1), (r(4, 6, 5),), 3),
    ("mean", lambda x: x.mean(1), (r(4, 6, 5),), 2),
    ("amax", lambda x: x.amax(-1), (r(4, 6),), 1),
    ("cumsum", lambda x: x.cumsum(1), (r(4, 6),), 2),
    ("topk", lambda x: x.topk(2, dim=1), (r(4, 6),), 1),
    ("softmax", lambda x: x.softmax(1), (r(4, 6),), 1),
    ("layer_norm", lambda x, w: F.layer_norm(x, (6,), w), (r(4, 6), r(6)), 1),
    ("group_norm", lambda x, w: F.group_norm(x, 3, w), (r(2, 6, 4), r(6)), 2),
    ("batch_norm", F.batch_norm, (r(4, 6), r(6), r(6).abs(), r(6), r(6)), 2),
    ("glu", F.glu, (r(4, 6),), 2),
    ("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (r(2, 12, 3, 3),), 2),
    ("channel_shuffle", lambda x: F.channel_shuffle(x, 3), (r(2, 12, 3, 3),), 5),
    ("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 2), (r(4, 6, 6),), 1),
    ("max_pool2d", lambda x: F.max_pool2d(x, 2), (r(2, 4, 6, 6),), 2),
    ("interpolate", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (r(2, 4, 3, 3),), 2),
    ("attention", F.scaled_dot_product_attention, (r(2, 4, 5, 6), r(2, 4, 7, 6), r(2, 4, 7, 3)), 5),
    (
        "causal attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        (r(2, 4, 5, 6),) * 3,
        4,
    ),
    (
        "attention with a bias",
        F.scaled_dot_product_attention,
        (r(2, 4, 5, 6), r(2, 4, 7, 6), r(2, 4, 7, 3), r(4, 5, 7)),
        5,
    ),
    (
        "grouped queries",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        (r(2, 6, 5, 4), r(2, 3, 7, 4), r(2, 3, 7, 4)),
        6,
    ),
    ("prelu", F.prelu, (r(2, 6, 3), r(6)), 3),
    ("where", lambda x, y: torch.where(x > 0, x, y), (r(4, 6), r(6)), 2),
    ("add", torch.add, (r(4, 6), r(6)), 2),
    ("an outer sum of itself", lambda x: (x[:, None] + x[None]).relu().sum(1), (r(6),), 0),
    ("a spread scalar", lambda x, s: (x.relu() + s.expand(6)).sum(0), (r(6), r(1)), 0),
]


@pytest.mark.parametrize(
    ("function", "operands", "exact"),
    [case[1:] for case in (*CASES, *COMPOSED)],
    ids=[case[0] for case in (*CASES, *COMPOSED)],
)
def test_cut_operands_give_the_cut_result(
    function: Callable[..., Any], operands: tuple[Any, ...], exact: int
) -> None:
    verdict = check(function, *operands)
    assert verdict.unknown == ()
    assert verdict.relative < 1e-10
    assert verdict.exact == exact


#: pointwise operators that need operands of their own, or are random
SPECIAL = {
    "polygamma",
    "special_polygamma",
    "rrelu",
    "bernoulli",
    "normal_functional",
    "clamp",
    "clip",
    "_conj",
    "copysign",
}


def unary() -> list[str]:
    """The ATen operators with the pointwise tag that take one tensor and nothing else that is required."""
    names = []
    for name in sorted(dir(aten)):
        packet = getattr(aten, name)
        overload = getattr(packet, "default", None)
        if overload is None or torch.Tag.pointwise not in overload.tags or name in SPECIAL:
            continue
        arguments = [a for a in overload._schema.arguments if not a.has_default_value() and not a.kwarg_only]
        if len(arguments) == 1 and str(arguments[0].type) == "Tensor" and not overload._schema.is_mutable:
            names.append(name)
    return names


def test_pointwise_operators_are_pointwise_and_their_law_about_zeros_holds() -> None:
    zeros = torch.zeros(3, dtype=torch.float64)
    wrong = []
    for name in unary():
        rule = find_rule(getattr(aten, name).default)
        if rule is None or rule.zero != "keep":
            continue
        result = getattr(aten, name).default(zeros)
        wrong += [name] if not torch.equal(result.double(), zeros) else []
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", unary())
def test_a_pointwise_operator_cut_gives_the_cut_result(name: str) -> None:
    try:
        assert check(getattr(aten, name).default, r(4, 6)).relative < 1e-10
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(str(error)[:80])


def core() -> Iterator[Any]:
    """The overloads that torch tags as core ATen."""
    for full in torch._C._dispatch_get_all_op_names():
        namespace, _, name = full.partition("::")
        base, _, overload = name.partition(".")
        found = (
            getattr(getattr(aten, base, None), overload or "default", None) if namespace == "aten" else None
        )
        if found is not None and torch.Tag.core in found.tags:
            yield found


def test_each_core_operator_has_a_rule_or_a_line_in_refused() -> None:
    missing = {str(packet_of(op)) for op in core() if find_rule(op) is None and packet_of(op) not in REFUSED}
    assert sorted(missing) == []


def test_nothing_has_both_a_rule_and_a_refusal() -> None:
    assert RULES.keys() & REFUSED.keys() == set()
    assert all(why for why in REFUSED.values())


# --- third parties ----------------------------------------------------------------------------------------


LIBRARY = "fxprune_test"


@pytest.fixture(scope="module")
def third_party() -> Iterator[Any]:
    """Two operators of others, registered when first needed and not while tests are collected.

    Registered at import by `torch.library.custom_op`, the first of them twice lost its schema in the middle of a whole run
    (`MemoryError: std::bad_alloc`, `ValueError: vector::reserve` from torch's own call), and never in this file alone.
    """
    library = torch.library.Library(LIBRARY, "DEF")
    for name in ("scaled", "taught"):
        library.define(f"{name}(Tensor x, Tensor by) -> Tensor")
        library.impl(name, lambda x, by: x * by, "CPU")
        torch.library.register_fake(f"{LIBRARY}::{name}", lambda x, by: torch.empty_like(x), lib=library)
    yield getattr(torch.ops, LIBRARY)
    del library  # kept until here: its operators are removed with it


class WithCustomOperator(nn.Module):
    def __init__(self, operator: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 5)
        self.by, self.operator = nn.Parameter(torch.randn(8)), operator

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.operator(self.a(x), self.by)).relu())


def test_an_operator_without_a_rule_pins_is_listed_and_pruning_goes_on_around_it(third_party: Any) -> None:
    program = capture(WithCustomOperator(third_party.scaled), (torch.randn(3, 6),))
    analysis = analyze(program)
    assert [(axis.size, axis.exact) for axis in analysis.axes] == [(12, True)]
    refusal = next(
        refusal for refusal in analysis.refusals if refusal.operator.startswith("fxprune_test.scaled")
    )
    assert refusal.why == "no rule for fxprune_test.scaled.default"
    assert "test_rules.py" in refusal.source
    assert "self.operator(self.a(x), self.by)" in refusal.source
    selection = Selection({analysis.axes[0].name: range(6)})
    x = torch.randn(3, 6)
    assert distance(shrink(program, selection)(x), zero_readers(program, selection)(x)) < 1e-6


def test_a_registered_rule_teaches_an_operator(third_party: Any) -> None:
    program = capture(WithCustomOperator(third_party.taught), (torch.randn(3, 6),))
    assert [axis.size for axis in analyze(program).axes] == [12]
    register_rule(third_party.taught, notation="* d, d -> * d", zero="times")
    try:
        axes = analyze(program).axes
        assert sorted(axis.size for axis in axes) == [8, 12]
        selection = Selection({axis.name: range(1, axis.size, 2) for axis in axes})
        x = torch.randn(3, 6)
        assert distance(shrink(program, selection)(x), zero_readers(program, selection)(x)) < 1e-6
        with pytest.raises(RuleError, match="has a rule already"):
            register_rule(third_party.taught, notation="* d, d -> * d")
    finally:
        del RULES[third_party.taught]


def test_a_registration_without_a_rule_is_refused(third_party: Any) -> None:
    with pytest.raises((RuleError, ValueError), match="give a notation or a function"):
        register_rule(third_party.taught)
    with pytest.raises(RuleError, match="is no law about zeros"):
        register_rule(third_party.taught, notation="* d -> * d", zero="nothing")


@pytest.mark.parametrize(
    "rubbish", [lambda op: None, lambda op: (3,), lambda op: op.dims("x")[:1], lambda op: 1 / 0]
)
def test_a_rule_that_fails_is_a_refusal_and_never_a_crash(
    rubbish: Callable[..., Any], third_party: Any
) -> None:
    program = capture(WithCustomOperator(third_party.taught), (torch.randn(3, 6),))
    register_rule(third_party.taught, function=rubbish)
    try:
        analysis = analyze(program)
    finally:
        del RULES[third_party.taught]
    assert [axis.size for axis in analysis.axes] == [12]
    assert any(
        "the rule of fxprune_test.taught.default failed" in refusal.why for refusal in analysis.refusals
    )


class Reversed(nn.Module):
    """`.T` of a cube: all dims are reversed, and no size can tell that from swapping the last two."""

    def __init__(self) -> None:
        super().__init__()
        self.cube, self.last = nn.Parameter(torch.randn(4, 4, 4)), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x[:, None, :, None] * self.cube.T).sum((2, 3)))


def test_the_transpose_of_a_cube_reverses_all_its_dims() -> None:
    program = capture(Reversed(), (torch.randn(3, 4),))
    assert torch.ops.aten.numpy_T.default in {node.target for node in program.graph.nodes}
    found = {frozenset((m.name, m.dim) for m in axis.members): axis for axis in analyze(program).axes}
    assert found.keys() == {frozenset({("cube", 0)}), frozenset({("cube", 2), ("last.weight", 1)})}
    axis = found[frozenset({("cube", 2), ("last.weight", 1)})]
    selection, x = Selection({axis.name: [0, 2]}), torch.randn(3, 4)
    assert distance(shrink(program, selection)(x), zero_readers(program, selection)(x)) < 1e-6
