# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Tampered programs: whatever changes an output is never called equal, and what was not tampered with always is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune import Program, Proof, Selection, analyze, capture, shrink, verify
from fxprune.errors import VerifyError
from fxprune.ir import copy_graph, rebuild
from fxprune.ir.program import trees
from support.models import net

NETS = (
    *(
        "mlp",
        "gated-ffn",
        "residual-mlp-norm",
        "weight-norm",
        "tied-lm",
        "self-attention",
        "multi-query",
        "rotary",
    ),
    *("alibi", "cross-attention", "resnet", "depthwise", "densenet", "lstm", "experts-top-two"),
)


@cache
def pruned(name: str) -> tuple[Program, Program, Selection]:
    model, inputs = net(name)
    program = capture(model, kwargs=inputs)
    axes = [axis for axis in analyze(program).axes if axis.exact]
    halves = {axis.name: range(max(axis.least, axis.size // 2)) for axis in axes}
    selection = Selection(halves)
    return program, shrink(program, selection), selection


def weights(slim: Program) -> list[str]:
    """Floating parameters, the largest first."""
    found = {name: value for name, value in slim.parameters().items() if value.is_floating_point()}
    return sorted(found, key=lambda name: (-found[name].numel(), name))


def with_weight(slim: Program, name: str, change: Callable[[Tensor], Tensor]) -> Program:
    value = slim.tensors()[name].detach().clone()
    return rebuild(slim, copy_graph(slim), {name: nn.Parameter(change(value))})


def _first(value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change the first row alone."""
    value[:1] = change(value[:1])
    return value


def _one(value: Tensor) -> Tensor:
    flat = value.view(-1)
    flat[flat.abs().argmax()] *= 1.01
    return value


def _noise(value: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return value + 1e-3 * value.abs().mean() * torch.randn(
        value.shape, generator=random, dtype=torch.float32
    ).to(value)


#: name: what is done to a weight of the pruned program
TAMPERS: dict[str, Callable[[Tensor], Tensor]] = {
    "weight times -3": lambda w: w * -3,
    "a row times 1.01": lambda w: _first(w, lambda row: row * 1.01),
    "one NaN": lambda w: _first(w, lambda row: row * math.nan),
    "infinite": lambda w: _first(w, lambda row: row + math.inf),
    "one element by 1 %": _one,
    "noise of a thousandth": _noise,
    "rows in another order": lambda w: w.flip(0),
    "zeros": torch.zeros_like,
}

FIGURES = {"tampered": 0, "caught": 0, "without effect": 0, "false alarms": 0}


def outputs(program: Program) -> list[Tensor]:
    torch.manual_seed(0)
    return [value for value in pytree.tree_leaves(program(**program.kwargs)) if isinstance(value, Tensor)]


def differs(one: Program, other: Program) -> bool:
    """Whether some output differs by more than rounding, told without the comparison that is tested."""
    for a, b in zip(outputs(one), outputs(other), strict=True):
        if not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6 * float(b.abs().median())):
            return True
    return False


@pytest.mark.parametrize("name", NETS)
def test_what_is_not_tampered_with_is_equal(name: str) -> None:
    program, slim, selection = pruned(name)
    proof = verify(program, slim, selection)
    assert (proof.status, proof.unmoved) == ("equal", ())
    assert proof.inputs >= 3
    assert set(proof.moves) == set(selection)


@pytest.mark.parametrize("tamper", TAMPERS)
@pytest.mark.parametrize("name", NETS)
def test_a_tampered_weight_is_caught(name: str, tamper: str) -> None:
    program, slim, selection = pruned(name)
    weight = weights(slim)[0]
    wrong = with_weight(slim, weight, TAMPERS[tamper])
    FIGURES["tampered"] += 1
    if not differs(wrong, slim):
        FIGURES["without effect"] += 1
        pytest.skip(f"{weight}: {tamper} changes no output of {name}")
    with pytest.raises(VerifyError):
        verify(program, wrong, selection)
    FIGURES["caught"] += 1


@pytest.mark.parametrize("name", NETS)
def test_a_dropped_or_repeated_output_is_caught(name: str) -> None:
    program, slim, selection = pruned(name)
    for change in (lambda leaves: leaves[:-1], lambda leaves: [*leaves, leaves[0]]):
        graph = copy_graph(slim)
        out = graph.output_node()
        leaves = pytree.tree_leaves(out.args[0])
        out.args = (tuple(change(leaves)),)
        wrong = rebuild(slim, graph, {})
        info = trees(wrong.graph_module)
        spec = pytree.tree_structure(tuple(range(len(out.args[0]))))
        wrong.graph_module.graph._codegen.pytree_info = info._replace(out_spec=spec)  # type: ignore[attr-defined]
        wrong.graph_module.recompile()
        with pytest.raises(VerifyError):
            verify(program, wrong, selection)


class Masked(nn.Module):
    """Logits of which one column, or all but a few, are a mask constant; a second output is in bfloat16."""

    def __init__(self, constant: float, columns: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 20)
        self.constant, self.columns = constant, columns

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.down(torch.relu(self.up(x)))
        low = torch.full_like(logits[..., : self.columns], self.constant)
        return torch.cat([logits[..., self.columns :], low], -1), logits.to(torch.bfloat16)


@pytest.mark.parametrize("constant", [-1e9, -1e4, 1e30, float(torch.finfo(torch.float32).min), -math.inf])
@pytest.mark.parametrize("columns", [1, 17])
def test_a_mask_constant_and_a_coarse_output_hide_nothing(constant: float, columns: int) -> None:
    torch.manual_seed(0)
    program = capture(Masked(constant, columns).eval(), (torch.randn(12, 8),))
    selection = Selection({"ffn": range(16)})
    slim = shrink(program, selection)
    assert verify(program, slim, selection).status == "equal"
    for tamper in ("weight times -3", "noise of a thousandth"):
        wrong = with_weight(slim, "down.weight", TAMPERS[tamper])
        with pytest.raises(VerifyError, match="differs by"):
            verify(program, wrong, selection)


class TwoOutputs(nn.Module):
    """The second output is the one that may be wrong."""

    def __init__(self, tail: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.up, self.down, self.tail = nn.Linear(8, 32), nn.Linear(32, 4), tail

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, self.tail(self.down(torch.relu(self.up(x))))


def proof_of(model: nn.Module, *args: Tensor) -> Proof:
    program = capture(model.eval(), args)
    selection = Selection({"ffn": range(16)})
    return verify(program, shrink(program, selection), selection)


def test_nan_in_a_later_output_is_a_difference() -> None:
    program = capture(TwoOutputs().eval(), (torch.randn(3, 8),))
    selection = Selection({"ffn": range(16)})
    wrong = with_weight(shrink(program, selection), "down.bias", lambda bias: bias * math.nan)
    with pytest.raises(VerifyError):
        verify(program, wrong, selection)


class OnlyNan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(-1 - self.down(torch.relu(self.up(x))) ** 2)


class Chosen(nn.Module):
    """Integers alone come out."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))).argmax(-1)


class DeadBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize(
    ("model", "x", "why"),
    [
        (OnlyNan(), torch.randn(3, 8), "no output has a finite floating number to compare"),
        (Chosen(), torch.randn(3, 8), "no output has a finite floating number to compare"),
        (TwoOutputs(), torch.zeros(0, 8), "no output has a finite floating number to compare"),
        (DeadBranch(), torch.randn(3, 8), "no output moves without the removed units of ffn on these inputs"),
    ],
    ids=["only NaN", "only integers", "an empty batch", "a dead branch"],
)
def test_what_shows_nothing_is_no_proof(model: nn.Module, x: Tensor, why: str) -> None:
    proof = proof_of(model, x)
    assert proof.status == "nothing proven"
    assert proof.why.startswith(why)


def test_zero_examples_are_not_all_that_is_tried() -> None:
    """On zeros nothing moves, for there are no biases; on inputs that are drawn it does."""
    model = TwoOutputs()
    for layer in (model.up, model.down):
        nn.init.zeros_(layer.bias)
    proof = proof_of(model, torch.zeros(3, 8))
    assert proof.status == "equal"
    assert proof.moves["ffn"] > 0.1


class Noisy(nn.Module):
    """Draws at the width of what is pruned, and at that of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.dropout(torch.relu(self.up(x)), 0.5, training=True)  # never switched off
        out = self.down(hidden)
        return out + torch.rand_like(out)


def test_random_values_are_the_same_on_both_sides() -> None:
    torch.manual_seed(0)
    program = capture(Noisy().eval(), (torch.randn(5, 8),))
    (axis,) = [axis for axis in analyze(program).axes if axis.size == 32]
    selection = Selection({axis.name: range(0, 32, 2)})
    slim = shrink(program, selection)
    proof = verify(program, slim, selection)
    assert (proof.status, proof.relative <= 1e-5) == ("equal", True)
    with pytest.raises(VerifyError):
        verify(program, with_weight(slim, "down.weight", _one), selection)
