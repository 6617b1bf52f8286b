"""Experts that are modules of their own: removal against the user's module, whose experts are silenced by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import Context, Selection, analyze, capture, prune, shrink
from fxprune.ir import Program
from fxprune.passes import parse_pipeline
from support.models import distance
from zoo.nets import build
from zoo.nets_experts import EXPERTS, INTO, OUT, Modules

KEPT = [0, 2]
GONE = [1, 3]

BY_SOFTMAX = ["modules-weighed", "modules-top-two", "modules-multi-gate", "modules-stacked-products"]
BY_GATES = [
    "modules-gates",
    "modules-unbound",
    "modules-chunked",
    "modules-stacked-gates",
    "modules-concatenated",
]


def net(name: str) -> tuple[nn.Module, dict[str, Any]]:
    module, inputs = build(name)
    return module.double(), {key: value.double() for key, value in inputs.items()}


def mixture(module: nn.Module, inputs: dict[str, Any]) -> tuple[Program, str]:
    program = capture(module, kwargs=inputs)
    (axis,) = (each for each in analyze(program).axes if each.role == "experts")
    assert (axis.size, axis.exact, axis.meaning) == (EXPERTS, True, "never chosen")
    return program, axis.name


def zeroed(module: nn.Module, gone: list[int]) -> nn.Module:
    """The module in which some experts return zeros."""
    other = copy.deepcopy(module)
    for k in gone:
        other.get_submodule(f"experts.{k}").register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    return other


def never_chosen(module: nn.Module, gone: list[int]) -> nn.Module:
    """The module whose routers give some experts logits of -inf."""
    other = copy.deepcopy(module)
    for name in ("router", "other"):
        if hasattr(other, name):
            other.get_submodule(name).register_forward_hook(
                lambda _, __, out: out.index_fill(-1, torch.tensor(gone), float("-inf"))
            )
    return other


@pytest.mark.parametrize("name", BY_SOFTMAX)
def test_behind_a_softmax_the_others_share_what_was_theirs(name: str) -> None:
    module, inputs = net(name)
    program, axis = mixture(module, inputs)
    slim, silenced = shrink(program, Selection({axis: KEPT})), never_chosen(module, GONE)
    assert distance(slim(**inputs), silenced(**inputs)) < 1e-12
    assert distance(silenced(**inputs), module(**inputs)) > 1e-2


@pytest.mark.parametrize("name", BY_GATES)
def test_behind_gates_of_their_own_they_return_zeros(name: str) -> None:
    module, inputs = net(name)
    program, axis = mixture(module, inputs)
    slim, silenced = shrink(program, Selection({axis: KEPT})), zeroed(module, GONE)
    assert distance(slim(**inputs), silenced(**inputs)) < 1e-12
    assert distance(silenced(**inputs), module(**inputs)) > 1e-2


@pytest.mark.parametrize("name", [*BY_SOFTMAX, *BY_GATES])
@pytest.mark.parametrize("kept", [[0, 1], [2, 3], [1, 2, 3], [0, 1, 2]], ids=str)
def test_nothing_of_a_removed_expert_is_left(name: str, kept: list[int]) -> None:
    module, inputs = net(name)
    program, axis = mixture(module, inputs)
    left = shrink(program, Selection({axis: kept})).tensors()
    assert {key.split(".")[1] for key in left if key.startswith("experts.")} == {str(k) for k in kept}
    assert {left[key].shape[0] for key in left if key.startswith(("router.", "other."))} == {len(kept)}


@pytest.mark.parametrize(
    "name", ["modules-weighed", "modules-gates", "modules-unbound", "modules-multi-gate"]
)
@pytest.mark.parametrize("kept", [1, 3])
def test_one_expert_may_stay(name: str, kept: int) -> None:
    module, inputs = net(name)
    program, axis = mixture(module, inputs)
    others = [k for k in range(EXPERTS) if k != kept]
    silenced = (never_chosen if name in BY_SOFTMAX else zeroed)(module, others)
    assert distance(shrink(program, Selection({axis: [kept]}))(**inputs), silenced(**inputs)) < 1e-12


def test_an_expert_of_two_gates_goes_with_the_second() -> None:
    module, inputs = net("modules-shared")
    program, axis = mixture(module, inputs)
    one, both = shrink(program, Selection({axis: [1, 2, 3]})), shrink(program, Selection({axis: [2, 3]}))
    assert ("experts.0.0.weight" in one.tensors(), "experts.0.0.weight" in both.tensors()) == (True, False)
    assert distance(both(**inputs), zeroed(module, [0])(**inputs)) < 1e-12


def test_mixtures_of_mixtures_lose_experts_apart() -> None:
    """Of the outer mixture, its second expert, which is a mixture; of the first one's, its second leaf."""
    module, inputs = net("modules-stages")
    program = capture(module, kwargs=inputs)
    slim = shrink(
        program, Selection({"outer.experts": [0], "inner.0.experts": [0, 2], "inner.1.experts": [1]})
    )
    assert sorted({key.rpartition(".")[0] for key in slim.tensors()}) == [
        "inner.0",
        "leaves.0",
        "leaves.2",
        "outer",
    ]
    other = copy.deepcopy(module)
    other.get_submodule("inner.0").register_forward_hook(
        lambda _, __, out: out.index_fill(-1, torch.tensor([1]), float("-inf"))
    )
    for k in (3, 4, 5):
        other.get_submodule(f"leaves.{k}").register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    assert distance(slim(**inputs), other(**inputs)) < 1e-12


@pytest.mark.parametrize("score", ["magnitude", "random", "activation", "taylor"])
def test_the_pass_takes_them_and_the_proof_holds(score: str) -> None:
    module, inputs = build("modules-weighed")
    rows = [{"x": torch.randn(3, INTO)} for _ in range(8)]
    result = prune(module, f"experts(ratio=0.5, score='{score}')", kwargs=inputs, context=Context(data=rows))
    assert (result.proof.exact, result.proof.chosen) == (("router.experts",), ("router.experts",))
    assert [(a.name, a.size) for a in analyze(result.program).axes if a.role == "experts"] == [
        ("router.experts", 2)
    ]
    assert result.program.parameter_count() < 0.6 * result.original.parameter_count()


def test_an_expert_that_the_router_never_takes_leaves_first() -> None:
    module, inputs = build("modules-weighed")
    with torch.no_grad():
        module.get_parameter("router.bias")[2] = -8
    rows = [{"x": torch.randn(3, INTO)} for _ in range(8)]
    result = prune(
        module, "experts(ratio=0.25, score='activation')", kwargs=inputs, context=Context(data=rows)
    )
    assert result.selection["router.experts"] == (0, 1, 3)
    assert distance(result.program(**inputs), module(**inputs)) < 1e-3


@pytest.mark.parametrize("name", [*BY_SOFTMAX, *BY_GATES])
def test_the_weights_of_all_experts_are_known_to_leave(name: str) -> None:
    module, inputs = net(name)
    program, axis = mixture(module, inputs)
    own = {key for key, _ in module.named_parameters() if key.startswith("experts.")}
    assert set(analyze(program).axis(axis).leaving) == own


def test_experts_outside_of_the_patterns_stay() -> None:
    module, inputs = build("modules-weighed")
    result = parse_pipeline("experts(ratio=0.5, skip='experts.2')").run(capture(module, kwargs=inputs))
    assert not result.selection
    assert result.steps[0].remarks == (
        "left out 1 that reach beyond its patterns: router.experts (experts.2.0.weight matches skip='experts.2')",
    )


def test_experts_and_the_neurons_within_go_in_one_run() -> None:
    module, inputs = build("modules-multi-gate")
    result = prune(module, "experts(ratio=0.5), ffn(ratio=0.5)", kwargs=inputs)
    whole = {"experts.0.ffn": 4, "experts.1.ffn": 5, "experts.2.ffn": 5, "experts.3.ffn": 6}
    left = {a.name: a.size for a in analyze(result.program).axes if a.role == "ffn"}
    assert len(left) == 2
    assert left.items() <= whole.items()


def test_it_holds_at_other_batch_sizes() -> None:
    module, inputs = net("modules-gates")
    program = capture(module, kwargs=inputs, dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})
    slim, more = shrink(program, Selection({"router.experts": KEPT})), torch.randn(13, INTO).double()
    assert distance(slim(x=more), zeroed(module, GONE)(x=more)) < 1e-12


class Unlike(Modules):
    """Experts whose gates are read otherwise: `how` says in which way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        gates = self.router(x).sigmoid()
        outs = [expert(x) for expert in self.experts]
        if self.how == "pairs":
            return (
                gates[..., 0:2].sum(-1, keepdim=True) * outs[0]
                + gates[..., 2:3] * outs[1]
                + gates[..., 3:] * outs[2]
            )
        if self.how == "one minus":
            return sum((1 - gates[..., k : k + 1]) * out for k, out in enumerate(outs))
        if self.how == "activation":
            return sum((gates[..., k : k + 1] * out).exp() for k, out in enumerate(outs))
        if self.how == "a constant":
            return sum((gates[..., k : k + 1] * out + 1.0) for k, out in enumerate(outs))
        if self.how == "output":
            return sum(gates[..., k : k + 1] * out for k, out in enumerate(outs)), gates[..., 0:1]
        return sum(gates[..., k : k + 1] * out[..., :1] for k, out in enumerate(outs)) + outs[0]  # broadcast


REFUSED = {
    "pairs": "slice_1 = aten.slice.Tensor takes several positions at once, or such as data decide",
    "one minus": "rsub = aten.rsub.Scalar reads a position on its own",
    "activation": "exp = aten.exp.default reads a position on its own",
    "a constant": "add = aten.add.Tensor adds a number",
    "output": "output = output reads a position on its own",
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_read_otherwise_stays_for_a_true_reason(how: str) -> None:
    program = capture(Unlike(how).eval(), (torch.randn(3, INTO),))
    assert [axis for axis in analyze(program).axes if axis.role == "experts"] == []
    (found,) = analyze(program).flow.addends.why.values()
    assert f"{found[1].name} = {found[1].target} {found[0]}" == REFUSED[how]


def test_the_total_may_be_broadcast() -> None:
    """The sum of all experts is never gone, whatever it is added to."""
    module, x = Unlike("broadcast").double().eval(), torch.randn(3, INTO).double()
    program, axis = mixture(module, {"x": x})
    slim = shrink(program, Selection({axis: KEPT}))
    assert slim(x=x).shape == (3, OUT)
    assert distance(slim(x=x), zeroed(module, GONE)(x=x)) < 1e-12


class TwoChoices(Modules):
    """Pairs of addends of two choices: without both, nothing would be left to add."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(INTO, EXPERTS)

    def forward(self, x: Tensor) -> Any:
        one, two = self.router(x).sigmoid(), self.other(x).sigmoid()
        pairs = [
            one[..., k : k + 1] * expert(x) + two[..., k : k + 1] * x[..., :OUT]
            for k, expert in enumerate(self.experts)
        ]
        return sum(pairs)


def test_addends_of_two_choices_in_one_sum_stay() -> None:
    program = capture(TwoChoices().eval(), (torch.randn(3, INTO),))
    found = analyze(program).flow.addends
    assert {why for why, _ in found.why.values()} == {"adds it to an addend of another choice"}
    assert not found.slots


def test_a_sigmoid_that_is_normalised_is_inexact() -> None:
    """A zero of the router's weights leaves a gate of a half in the sum that all are divided by."""

    class Normalised(Modules):
        def forward(self, x: Tensor) -> Any:
            gates = self.router(x).sigmoid()
            gates = gates / gates.sum(-1, keepdim=True)
            return sum(gates[..., k : k + 1] * expert(x) for k, expert in enumerate(self.experts))

    module, x = Normalised().double().eval(), torch.randn(3, INTO).double()
    program = capture(module, (x,))
    (axis,) = (each for each in analyze(program).axes if each.role == "experts")
    assert axis.why_inexact == "no zeros of weights silence it at sum_1"
    slim = shrink(program, Selection({axis.name: KEPT}))
    assert distance(slim(x), zeroed(module, GONE)(x)) > 1e-2
    assert distance(slim(x), never_chosen(module, GONE)(x)) < 1e-12


def test_an_empty_operand_of_a_concatenation_is_no_expert() -> None:
    """Caches begin as empty vectors."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(INTO, OUT)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.new_zeros(0), self.proj(x)[:, None]], dim=-2) * x.sum()

    program = capture(Cached().eval(), (torch.randn(3, INTO),))
    assert analyze(program).flow.addends.stacks == {}


class _TwoBranches(nn.Module):
    """Two convolutions side by side, weighed by attention over channels, as in CSPNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, width, 1), nn.Conv2d(3, width, 1)
        self.attention, self.out = nn.Conv2d(2 * width, 2 * width, 1), nn.Conv2d(2 * width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        values = (part.flatten(2).unflatten(2, (4, 4)) for part in (self.one(x), torch.relu(self.two(x))))
        both = torch.cat([*values], dim=1)
        weights = torch.sigmoid(self.attention(both.mean((2, 3), keepdim=True)))
        out: Tensor = self.out(both * weights)
        return out


@pytest.mark.parametrize(("width", "axes"), [(4, [("channels", 4), ("channels", 4)]), (1, [])])
def test_branches_of_one_channel_are_no_experts(width: int, axes: list[tuple[str, int]]) -> None:
    found = analyze(capture(_TwoBranches(width), (torch.randn(2, 3, 4, 4),))).axes
    assert [(each.role, each.size) for each in found] == axes
