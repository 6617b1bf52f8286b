"""Routing: candidates are axes, and a removed expert is one that the router can't choose."""

import pytest
import torch

from fxprune import Selection, analyze, capture, parse_pipeline, shrink, verify
from fxprune.errors import SelectionError
from fxprune.ir import Program
from zoo.nets import build
from zoo.nets_routed import TopTwo

LEAST = {
    "experts-top-two": 2,
    "experts-switch": 1,
    "experts-scattered-logits": 2,
    "experts-twice-the-best": 2,
}


def routed(name: str) -> Program:
    module, inputs = build(name)
    return capture(module, kwargs=inputs)


def described(name: str) -> list[tuple[str, str, int, bool, int]]:
    axes = analyze(routed(name)).axes
    return [(a.name, a.role, a.size, a.exact, a.least) for a in axes if a.choices]


@pytest.mark.parametrize(("name", "least"), list(LEAST.items()))
def test_experts_are_an_axis_of_which_as_many_stay_as_are_chosen(name: str, least: int) -> None:
    assert described(name) == [("experts", "experts", 8, True, least)]


def test_groups_and_the_experts_within_are_axes_of_their_own() -> None:
    assert described("experts-limited-groups") == [
        ("experts", "experts", 4, True, 2),
        ("experts.2", "experts", 2, True, 2),
    ]


def test_a_codebook_loses_codes_and_a_sparse_layer_neurons() -> None:
    assert described("codebook") == [("codes.other", "other", 12, True, 1)]
    assert described("winners-take-all") == [("ffn", "ffn", 16, True, 3)]


def test_numbers_that_a_net_calculates_with_keep_experts_whole() -> None:
    assert described("experts-counted") == []
    reasons = {refusal.why for refusal in analyze(routed("experts-counted")).refusals}
    assert "add = aten.add.Tensor reads the numbers of the chosen" in reasons


def test_pruning_equals_a_router_whose_logits_are_masked_by_hand() -> None:
    module, inputs = build("experts-top-two")
    assert isinstance(module, TopTwo)
    kept = [0, 3, 4, 7]
    slim = shrink(capture(module, kwargs=inputs), Selection({"experts": kept}))
    gone = torch.tensor([i not in kept for i in range(8)])
    module.router.register_forward_hook(lambda _, __, logits: logits.masked_fill(gone, float("-inf")))
    with torch.no_grad():
        assert (slim(**inputs) - module(**inputs)).abs().max() < 1e-6
    assert slim.tensors()["router.weight"].shape == (4, 6)
    assert slim.tensors()["up"].shape == (4, 6, 10)


def test_fewer_experts_than_are_chosen_are_refused_with_the_place() -> None:
    with pytest.raises(
        SelectionError, match=r"topk = aten.topk.default chooses 2, and 1 would be left \[.*nets_routed"
    ):
        shrink(routed("experts-top-two"), Selection({"experts": [5]}))


def test_the_pass_keeps_as_many_as_are_chosen() -> None:
    program = routed("experts-top-two")
    result = parse_pipeline("experts(ratio=0.9)").run(program)
    assert len(result.selection["experts"]) == 2
    verdict = verify(program, result.program, result.selection)
    assert (verdict.exact, verdict.chosen) == (("experts",), ("experts",))
    assert verdict.relative < 1e-6 < verdict.change
