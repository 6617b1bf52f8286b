# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Inputs of a proof: what is drawn anew, what is shuffled, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, Selection, capture, shrink, verify
from fxprune.verification.inputs import drawn, input_variants, with_inputs_of
from support.texts import Net

NAMES = ("x", "zeros", "mask", "holes", "pair", "one", "ids", "flags", "empty", "complex", "narrow")


def program() -> Program:
    """One input of each kind."""
    torch.manual_seed(0)
    values: tuple[Tensor, ...] = (
        torch.randn(40, 50) * 3 + 7,
        torch.zeros(40, 50),
        torch.tensor([0.0, 1.0, 1.0]),
        torch.tensor([1.0, -torch.inf, 3.0]),
        torch.tensor([1.0, 3.0]),
        torch.tensor(5.0),
        torch.tensor([[3, 1, 4], [1, 5, 9]]),
        torch.tensor([0, 1, 1, 0]),
        torch.zeros(0, 3),
        torch.randn(30, 40, dtype=torch.complex64) + 2j,
        (torch.randn(40, 50) + 4).to(torch.float8_e4m3fn),
    )
    net = Net(
        lambda net, *args: tuple(arg.clone() if arg.element_size() > 1 else arg.float() for arg in args)
    )
    return capture(net, values)


def values(each: Program) -> dict[str, Tensor]:
    return dict(zip(NAMES, each.flat_inputs(), strict=True))


def test_what_is_drawn_has_the_mean_and_spread_of_the_example() -> None:
    before, after = values(program()), values(drawn(program(), 1))
    assert float(after["x"].mean()) == pytest.approx(7, abs=0.3)
    assert float(after["x"].std()) == pytest.approx(3, abs=0.2)
    assert float((after["x"] - before["x"]).abs().max()) > 1
    assert float(after["zeros"].mean()) == pytest.approx(0, abs=0.1)
    assert float(after["zeros"].std()) == pytest.approx(1, abs=0.1)
    assert float(after["pair"].mean()) != 2
    assert float(after["one"]) != 5
    assert complex(after["complex"].mean()) == pytest.approx(2j, abs=1)
    assert float((after["complex"] - before["complex"]).abs().max()) > 1
    assert float(after["narrow"].float().mean()) == pytest.approx(4, abs=0.3)
    for name, value in after.items():
        assert (value.shape, value.dtype) == (before[name].shape, before[name].dtype)


def test_integers_are_shuffled() -> None:
    before, after = values(program())["ids"], values(drawn(program(), 1))["ids"]
    assert sorted(after.flatten().tolist()) == sorted(before.flatten().tolist())
    assert not torch.equal(before, after)


@pytest.mark.parametrize("name", ["mask", "holes", "flags", "empty"])
def test_what_can_not_be_drawn_stays(name: str) -> None:
    assert torch.equal(values(program())[name], values(drawn(program(), 1))[name])


def test_a_seed_draws_the_same_again() -> None:
    one, same, other = (values(drawn(program(), seed))["x"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_example_comes_first_then_others_of_its_sizes_and_one_that_is_larger() -> None:
    net = nn.Linear(6, 4)
    auto = torch.export.Dim.AUTO
    fixed = capture(net, (torch.randn(3, 6),))
    moving = capture(net, (torch.randn(3, 5, 6),), dynamic_shapes={"input": {0: auto, 1: auto}})
    assert [tuple(each.args[0].shape) for each in input_variants(fixed)] == [(3, 6)] * 3
    assert [tuple(each.args[0].shape) for each in input_variants(moving)] == [(3, 5, 6)] * 3 + [(4, 7, 6)]
    assert input_variants(fixed)[0] is fixed
    drawings = [each.args[0] for each in input_variants(fixed)]
    assert not torch.equal(drawings[1], drawings[2])


class Upwards(nn.Module):
    """Takes rising numbers alone."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.searchsorted(x, x) + torch.linalg.cholesky(torch.diag(x.diff(prepend=x[:1] - 1)))[0]


def test_inputs_that_the_program_does_not_take_are_left_out() -> None:
    taken = capture(nn.Linear(6, 4), (torch.randn(3, 6),))
    assert len(input_variants(capture(Upwards(), (torch.arange(9.0),)))) == 1
    assert len(input_variants(taken)) == 3
    assert len(input_variants(taken.replace(free_inputs=frozenset(taken.input_names())))) == 1


def test_a_program_of_complex_inputs_is_proven() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda net, z: net.down(net.up(torch.view_as_real(z).flatten(1)).relu()),
        up=nn.Linear(6, 8),
        down=nn.Linear(8, 3),
    )
    program = capture(net, (torch.randn(4, 3, dtype=torch.complex64),))
    selection = Selection({"ffn": [0, 1]})
    proof = verify(program, shrink(program, selection), selection)
    assert (proof.status, proof.inputs) == ("equal", 3)


def test_inputs_of_a_variant() -> None:
    given = capture(nn.Linear(6, 4), (torch.randn(3, 6),))
    variant = drawn(given, 1)
    assert with_inputs_of(given, variant).args[0] is variant.args[0]
    assert with_inputs_of(given, variant).graph_module is given.graph_module
