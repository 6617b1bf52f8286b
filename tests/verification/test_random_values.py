"""Random operators: which nodes draw, and what both programs get in place of their values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, Selection, capture, shrink, verify
from fxprune.ir import copy_graph, rebuild, run_example
from fxprune.ir.random_values import random_nodes
from fxprune.verification.random_values import fix_random
from support.texts import Net


def noisy(chance: float = 0.5) -> Program:
    torch.manual_seed(0)

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        hidden = nn.functional.dropout(net.up(x), chance, training=True)  # type: ignore[operator]
        return net.down(hidden)  # type: ignore[operator, no-any-return]

    return capture(Net(forward, up=nn.Linear(8, 6), down=nn.Linear(6, 4)), (torch.randn(5, 8),))


SELECTION = Selection({"ffn": [0, 2, 5]})


def test_the_nodes_that_draw() -> None:
    assert list(random_nodes(noisy())) == ["dropout"]
    assert random_nodes(noisy(0.0)) == {}
    assert random_nodes(capture(nn.Linear(8, 4), (torch.randn(5, 8),))) == {}


def test_what_draws_nothing_stays_as_it_is() -> None:
    program = capture(nn.Linear(8, 4), (torch.randn(5, 8),))
    assert fix_random(program, program, Selection()) == (program, program, "")


def test_both_programs_get_the_same_values() -> None:
    """The value that the original drew, and of it the columns that stay."""
    program = noisy()
    fixed, slim, why = fix_random(program, shrink(program, SELECTION), SELECTION)
    whole, part = (each.tensors()["_drawn_dropout"] for each in (fixed, slim))
    assert (why, whole.shape) == ("", (5, 6))
    assert torch.equal(part, whole[:, [0, 2, 5]])
    assert not [
        node
        for each in (fixed, slim)
        for node in each.graph.nodes
        if "dropout" in str(node.target).split(".")
    ]
    (got,) = run_example(slim)
    weight, bias = (slim.tensors()[name] for name in ("down.weight", "down.bias"))
    assert torch.allclose(got, part @ weight.T + bias, atol=1e-6)


def test_drawing_leaves_the_random_state() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fix_random(noisy_of(before), noisy_of(before), Selection())
    assert torch.equal(torch.get_rng_state(), before)


def noisy_of(state: Tensor) -> Program:
    made = noisy()
    torch.set_rng_state(state)
    return made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("name", "dropout has no counterpart in the pruned program"),
        ("size", "what dropout draws can't be cut as the selection says"),
    ],
)
def test_nothing_is_proven_where_the_values_can_not_be_the_same(change: str, said: str) -> None:
    program = noisy()
    slim = shrink(program, SELECTION if change == "name" else Selection({"ffn": [0, 2]}))
    if change == "name":
        graph = copy_graph(slim)
        next(node for node in graph.nodes if node.name == "dropout").name = "another"
        slim = rebuild(slim, graph, {})
    fixed, same, why = fix_random(program, slim, SELECTION)
    assert (fixed, same) == (program, slim)
    assert why.startswith("the program draws random numbers (aten.dropout.default at ")
    assert why.endswith(f", and {said}")
    proof = verify(program, slim, SELECTION)
    assert (proof.status, proof.why, proof.exact, proof.inexact) == ("nothing proven", why, ("ffn",), ())
