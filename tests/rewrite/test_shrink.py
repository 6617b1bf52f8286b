# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Shrink: smaller tensors, the same function but for the removed units, and no other change."""

from __future__ import annotations

import copy

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import Program, Selection, analyze, capture, show, shrink, zero_readers
from fxprune.errors import SelectionError
from support.models import captured, distance, net
from support.texts import Net, attention, mlp
from zoo import check
from zoo.nets import NETS, build

SOME = (
    "fused-gate",
    "input-convex",
    "pairwise-sum",
    "broadcast",
    "in-place-views",
    "slice-write",
    "stacked-qkv",
    "rotary",
    "latent",
    "linear-attention",
    "resnet-option-a",
    "unet",
    "padded",
    "state-space",
    "dynamic-conv",
)


@pytest.mark.parametrize("name", SOME)
def test_what_is_pruned_equals_the_zeroed_original(name: str) -> None:
    outcome = check.run(name, lambda: build(name))
    assert outcome.status == "ok", outcome.reason


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETS) - set(SOME)))
def test_every_net_that_is_pruned_equals_its_zeroed_original(name: str) -> None:
    outcome = check.run(name, lambda: build(name))
    assert outcome.status == "ok", outcome.reason


def halves(program: Program, exact: bool = True) -> Selection:
    axes = [axis for axis in analyze(program).axes if axis.exact or not exact]
    return Selection({axis.name: range(0, axis.size, 2) for axis in axes})


def test_an_empty_selection_changes_nothing() -> None:
    program = captured("mlp")
    assert distance(shrink(program, Selection())(**program.kwargs), program(**program.kwargs)) == 0


def test_parameters_that_lose_nothing_are_shared() -> None:
    program = captured("gated-ffn")
    axis = analyze(program).axes[0]
    slim = shrink(program, Selection({axis.name: [0]}))
    assert slim.parameters()["down.bias"] is program.parameters()["down.bias"]
    assert slim.parameters()["down.weight"].shape == (6, 1)
    assert program.parameters()["down.weight"].shape == (6, 16)


def test_kept_weights_are_the_original_ones() -> None:
    program = captured("mlp")
    slim = shrink(program, Selection({"ffn": [1, 5, 7]}))
    assert torch.equal(slim.parameters()["up.weight"], program.parameters()["up.weight"][[1, 5, 7]])
    assert torch.equal(slim.parameters()["down.weight"], program.parameters()["down.weight"][:, [1, 5, 7]])


def test_tied_weights_stay_tied() -> None:
    """A table and a head over one memory, under two names: what is cut is one tensor under both names."""
    embed, head = nn.Embedding(19, 8), nn.Linear(8, 19, bias=False)
    head.weight = nn.Parameter(embed.weight.detach())
    net = Net(lambda net, ids: net.head(net.embed(ids).relu()), embed=embed, head=head)
    program = capture(net, (torch.arange(5),))
    for slim in (
        shrink(program, Selection({"ffn": [1, 4, 6]})),
        zero_readers(program, Selection({"ffn": [1, 4, 6]})),
    ):
        assert slim.tensors()["embed.weight"] is slim.tensors()["head.weight"]
    wanted = embed.weight[:, [1, 4, 6]]
    assert torch.equal(shrink(program, Selection({"ffn": [1, 4, 6]})).tensors()["head.weight"], wanted)


def test_the_slim_module_trains_and_loads() -> None:
    program = captured("residual-mlp-norm")
    slim = shrink(program, halves(program))
    module, twin = slim.module(), slim.module()
    module(**program.kwargs).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    twin.load_state_dict(module.state_dict())
    assert distance(twin(**program.kwargs), module(**program.kwargs)) == 0
    assert distance(slim(**program.kwargs), module(**program.kwargs)) > 0


def test_unused_parameters_are_gone_from_the_state_dict() -> None:
    program = captured("residual-mlp")
    slim = shrink(program, halves(program))
    state = slim.module().state_dict()
    assert set(state) == set(slim.tensors())
    assert sum(value.numel() for value in state.values()) == slim.parameter_count()


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_dynamic_sizes_stay_right_at_another_shape(name: str) -> None:
    program = captured(name, dynamic=True)
    selection = halves(program)
    slim, oracle = shrink(program, selection), zero_readers(program, selection)
    ids = torch.randint(0, 99, (5, 21))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert distance(slim(**inputs), oracle(**inputs)) < 1e-5
    assert distance(oracle(**inputs), program(**inputs)) > 1e-3


def test_an_axis_can_shrink_twice_under_its_name() -> None:
    program = captured("gated-ffn")
    name = analyze(program).axes[0].name
    once = shrink(program, Selection({name: range(0, 16, 2)}))
    twice = shrink(once, Selection({name: [1, 3]}))
    both = shrink(program, Selection({name: range(0, 16, 2)}).compose(Selection({name: [1, 3]})))
    assert distance(twice(**program.kwargs), both(**program.kwargs)) == 0


def test_an_inexact_axis_shrinks_but_has_no_oracle() -> None:
    program = captured("residual-mlp-norm")
    hidden = next(axis for axis in analyze(program).axes if not axis.exact)
    slim = shrink(program, Selection({hidden.name: [0, 1, 2]}))
    assert slim(**program.kwargs).shape == program(**program.kwargs).shape
    with pytest.raises(SelectionError, match=f"no zeros equal removal on {hidden.name}"):
        zero_readers(program, Selection({hidden.name: [0, 1, 2]}))


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection({"fnn": [0]}), "no axis 'fnn' in this program; nearest: ffn"),
        (Selection({"ffn": [0, 16]}), "axis ffn has 16 indices, the selection speaks of index 16"),
    ],
)
def test_a_selection_for_another_model_is_refused(selection: Selection, said: str) -> None:
    with pytest.raises(SelectionError) as caught:
        shrink(captured("mlp"), selection)
    assert said in str(caught.value)


def test_a_selection_of_other_sizes_is_refused() -> None:
    wanted = "axis ffn has 16 indices, the selection speaks of a size of 99: it is for another model"
    with pytest.raises(SelectionError, match=wanted):
        shrink(captured("mlp"), Selection({"ffn": [0]}, {"ffn": 99}))
    assert shrink(captured("mlp"), Selection({"ffn": [0]}, {"ffn": 16})).tensors()["up.bias"].shape == (1,)


class Shared(nn.Module):
    """A frozen parameter, a half-precision one and a non-contiguous one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.up.weight.requires_grad = False
        self.down = nn.Parameter(torch.randn(8, 5).t())

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).relu() @ self.down.t()


def test_dtype_and_requires_grad_are_kept() -> None:
    program = capture(Shared().to(torch.bfloat16), (torch.randn(3, 6, dtype=torch.bfloat16),))
    slim = shrink(program, halves(program))
    assert not slim.parameters()["up.weight"].requires_grad
    assert slim.parameters()["down"].requires_grad
    assert slim.parameters()["down"].dtype == torch.bfloat16


def test_the_given_program_stays_as_it_was() -> None:
    model, inputs = net("stacked-qkv")
    program = capture(model, kwargs=inputs)
    before, code = copy.deepcopy(program.graph_module.state_dict()), program.graph_module.code
    shrink(program, halves(program))
    zero_readers(program, halves(program))
    assert program.graph_module.code == code
    for name, value in program.graph_module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_before_and_after() -> None:
    program = capture(mlp(), (torch.randn(3, 8),))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !8)
up.weight: (ffn:32, !8)
up.bias: (ffn:32)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:32)
relu = relu(linear) -> (!3, ffn:32)
down.weight: (!8, ffn:32)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )
    assert_expected_inline(
        show(shrink(program, Selection({"ffn": [0, 2, 5]}))),
        """\
x: (!3, !8)
up.weight: (ffn:3, !8)
up.bias: (ffn:3)
linear = linear(x, up.weight, up.bias) -> (!3, ffn:3)
relu = relu(linear) -> (!3, ffn:3)
down.weight: (!8, ffn:3)
down.bias: (!8)
linear_1 = linear(relu, down.weight, down.bias) -> (!3, !8)
return linear_1""",
    )


def test_before_and_after_of_heads_alone() -> None:
    """Whole heads: the rows of q, k and v, the columns of the output, and the number of heads in each view."""
    program = capture(attention(heads=4), (torch.randn(3, 5, 8),))
    assert_expected_inline(
        show(program),
        """\
x: (!3, !5, !8)
q.weight: (heads:4 x qk:2, !8)
linear = linear(x, q.weight) -> (!3, !5, heads:4 x qk:2)
unflatten = reshape(linear, [3, 5, 4, 2]) -> (!3, !5, heads:4, qk:2)
transpose = transpose(unflatten, 1, 2) -> (!3, heads:4, !5, qk:2)
k.weight: (heads:4 x qk:2, !8)
linear_1 = linear(x, k.weight) -> (!3, !5, heads:4 x qk:2)
unflatten_1 = reshape(linear_1, [3, 5, 4, 2]) -> (!3, !5, heads:4, qk:2)
transpose_1 = transpose(unflatten_1, 1, 2) -> (!3, heads:4, !5, qk:2)
v.weight: (heads:4 x v:2, !8)
linear_2 = linear(x, v.weight) -> (!3, !5, heads:4 x v:2)
unflatten_2 = reshape(linear_2, [3, 5, 4, 2]) -> (!3, !5, heads:4, v:2)
transpose_2 = transpose(unflatten_2, 1, 2) -> (!3, heads:4, !5, v:2)
scaled_dot_product_attention = scaled_dot_product_attention(transpose, transpose_1, transpose_2, scale=0.707107) -> (!3, heads:4, !5, v:2)
transpose_3 = transpose(scaled_dot_product_attention, 1, 2) -> (!3, !5, heads:4, v:2)
flatten = flatten(transpose_3, 2) -> (!3, !5, heads:4 x v:2)
out.weight: (!8, heads:4 x v:2)
out.bias: (!8)
linear_3 = linear(flatten, out.weight, out.bias) -> (!3, !5, !8)
return linear_3""",
    )
    assert_expected_inline(
        show(shrink(program, Selection({"heads": [1]}))),
        """\
x: (!3, !5, !8)
q.weight: (qk:2, !8)
linear = linear(x, q.weight) -> (!3, !5, qk:2)
unflatten = reshape(linear, [3, 5, 1, 2]) -> (!3, !5, 1, qk:2)
transpose = transpose(unflatten, 1, 2) -> (!3, 1, !5, qk:2)
k.weight: (qk:2, !8)
linear_1 = linear(x, k.weight) -> (!3, !5, qk:2)
unflatten_1 = reshape(linear_1, [3, 5, 1, 2]) -> (!3, !5, 1, qk:2)
transpose_1 = transpose(unflatten_1, 1, 2) -> (!3, 1, !5, qk:2)
v.weight: (v:2, !8)
linear_2 = linear(x, v.weight) -> (!3, !5, v:2)
unflatten_2 = reshape(linear_2, [3, 5, 1, 2]) -> (!3, !5, 1, v:2)
transpose_2 = transpose(unflatten_2, 1, 2) -> (!3, 1, !5, v:2)
scaled_dot_product_attention = scaled_dot_product_attention(transpose, transpose_1, transpose_2, scale=0.707107) -> (!3, 1, !5, v:2)
transpose_3 = transpose(scaled_dot_product_attention, 1, 2) -> (!3, !5, 1, v:2)
flatten = flatten(transpose_3, 2) -> (!3, !5, v:2)
out.weight: (!8, v:2)
out.bias: (!8)
linear_3 = linear(flatten, out.weight, out.bias) -> (!3, !5, !8)
return linear_3""",
    )
