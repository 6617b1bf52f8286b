"""Equivalence proof: it accepts the results of shrink, leaves inexact axes out of the claim, and names the first node that differs."""

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, Proof, Selection, analyze, capture, shrink, verify, zero_readers
from fxprune.errors import SelectionError, VerifyError
from fxprune.ir import copy_graph, rebuild, run_example
from fxprune.ir.compare import moved_by
from support.models import captured


def halved(program: Program, exact: bool = True) -> Selection:
    axes = analyze(program).axes
    return Selection({axis.name: range(0, axis.size, 2) for axis in axes if axis.exact or not exact})


def tampered(program: Program, name: str) -> Program:
    value = program.parameters()[name].detach().clone()
    value.view(-1)[0] += 1
    return rebuild(program, copy_graph(program), {name: nn.Parameter(value)})


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "resnet"])
def test_what_shrink_gives_is_proved(name: str) -> None:
    program = captured(name)
    selection = halved(program)
    verdict = verify(program, shrink(program, selection), selection)
    assert verdict.relative <= 1e-5 < verdict.change
    assert (set(verdict.exact), verdict.inexact) == (set(selection), ())


def test_inexact_axes_are_no_part_of_the_claim() -> None:
    program = captured("gpt2")
    selection = halved(program, exact=False)
    verdict = verify(program, shrink(program, selection), selection)
    assert verdict.inexact == ("hidden",)
    assert "hidden" not in verdict.exact
    with pytest.raises(SelectionError, match=r"no zeros equal removal on hidden \(normalisation over it"):
        zero_readers(program, selection)


@pytest.mark.parametrize("inexact", [False, True])
def test_the_first_node_that_differs_in_value_is_named(inexact: bool) -> None:
    program = captured("gpt2")
    selection = halved(program, exact=not inexact)
    slim = shrink(program, selection)
    with pytest.raises(VerifyError, match="its value differs by") as caught:
        verify(program, tampered(slim, "transformer.h.1.mlp.c_fc.weight"), selection)
    assert caught.value.node == "transformer_h_1_mlp_c_fc_weight"


def test_the_first_node_that_differs_in_shape_is_named() -> None:
    program = captured("bert")
    selection = halved(program)
    other = Selection({name: selection[name] for name in list(selection)[1:]})
    with pytest.raises(
        VerifyError, match=r"shape \(16, 32\), expected \(8, 32\) \(of \(32, 32\)\)"
    ) as caught:
        verify(program, shrink(program, other), selection)
    assert caught.value.node is not None


def test_a_freed_output_is_compared_where_it_stays() -> None:
    program = captured("bert").replace(free_outputs=frozenset({"pooler_output"}))
    selection = Selection({"pooler.dense.other": [0, 3, 5]})
    slim = shrink(program, selection)
    assert slim(**program.kwargs).pooler_output.shape == (3, 3)
    assert verify(program, slim, selection).relative <= 1e-5
    wanted = program(**program.kwargs).pooler_output[:, [0, 3, 5]]
    assert torch.allclose(slim(**program.kwargs).pooler_output, wanted, atol=1e-6)


class Sharp(nn.Module):
    """Amplifies rounding, and names a type."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 512), nn.Linear(512, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.relu(self.up(x)))
        return torch.sin(y.to(torch.float32) * 1e5)


def test_rounding_that_passes_the_bar_is_told_from_a_difference_in_doubles() -> None:
    torch.manual_seed(0)
    program = capture(Sharp().eval(), (torch.randn(4, 8),))
    axis = next(axis for axis in analyze(program).axes if axis.role == "ffn")
    selection = Selection({axis.name: range(0, 512, 2)}, {axis.name: 512})
    slim = shrink(program, selection)
    verdict = verify(program, slim, selection)
    assert verdict.relative <= verdict.bar == 1e-10
    slim.graph_module.get_parameter("down.weight").data[0, 0] += 1e-3
    with pytest.raises(VerifyError, match="its value differs by"):
        verify(program, slim, selection)


def test_what_re_fitting_moves_is_told_against_the_original() -> None:
    """The change is that of the given program, whose weights were re-fitted, and not of the one with the originals in their place."""
    program = captured("mlp")
    selection = Selection({"ffn": range(0, 16, 2)})
    slim = shrink(program, selection)
    moved = tampered(slim, "down.bias")
    proof = verify(program, moved, selection, ("down.bias",))
    assert (proof.status, proof.refitted) == ("equal", ("down.bias",))
    wanted = moved_by(run_example(moved), run_example(program))
    assert proof.change == wanted != moved_by(run_example(slim), run_example(program))
    with pytest.raises(VerifyError, match="its value differs by"):
        verify(program, moved, selection)


def test_axes_that_move_nothing_are_named() -> None:
    proof = Proof(0.0, 1e-5, ("a", "b", "c"), (), 1.0, moves={"a": 0.0, "b": 1e-9, "c": 0.0})
    assert proof.unmoved == ("a", "c")
