# mypy: disable-error-code="no-any-return"
"""Attention logits: queries and keys that lose dims are re-fitted in a basis in which the kept ones give most of Q·Kᵀ, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import Program, Selection, analyze, apply, verify
from fxprune.calibration.repair import parse_repair, repair
from fxprune.errors import UsageError
from support.models import captured
from support.repaired import calibration, error, free, normal, repaired

WIDTH, HEADS, DIM = 12, 3, 8


class Attention(nn.Module):
    """Attention whose queries and keys have DIM dims a head; a subclass says how they are compared. `groups` heads of keys."""

    groups = HEADS

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q = nn.Linear(WIDTH, HEADS * DIM)
        self.k, self.v = nn.Linear(WIDTH, self.groups * DIM), nn.Linear(WIDTH, self.groups * DIM)
        self.out = nn.Linear(HEADS * DIM, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, DIM)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(self.mixed(q, k, v).transpose(1, 2).flatten(2))

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v)


class Multiplied(Attention):
    """As two products, with a scale before them."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q / DIM**0.5) @ k.transpose(-1, -2)).softmax(-1) @ v


class Spelled(Attention):
    """As einsum."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhij,bhjd->bhid", (torch.einsum("bhid,bhjd->bhij", q, k) * 0.3).softmax(-1), v)


class Grouped(Attention):
    """With one head of keys for all of the queries."""

    groups = 1

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Fused(Attention):
    """With queries, keys and values from one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, DIM)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.mixed(q, k, v).transpose(1, 2).flatten(2))


KINDS = (Attention, Multiplied, Spelled, Grouped, Fused)


def planted(kind: type[Attention], rank: int) -> Program:
    """Attention in which the last dims of queries and keys are combinations of the first `rank`."""
    model = kind()
    with torch.no_grad():
        for name in ("q", "k"):
            for layer in [getattr(model, name)] if kind is not Fused else []:
                plant(layer.weight, layer.bias, rank)
        if isinstance(model, Fused):
            rows = 2 * HEADS * DIM
            plant(model.qkv.weight[:rows], model.qkv.bias[:rows], rank)
    return free(model, 4, 9, WIDTH)


def plant(weight: Tensor, bias: Tensor, rank: int) -> None:
    for part in (weight.view(-1, DIM, WIDTH), bias.view(-1, DIM, 1)):
        torch.manual_seed(1)
        mix = torch.randn(len(part), DIM - rank, rank)
        part[:, rank:] = mix @ part[:, :rank]


def halved(program: Program) -> Selection:
    """A selection of other dims for each head of keys, half of them."""
    axis = next(axis for axis in analyze(program).axes if axis.role == "qk")
    return Selection({axis.name: range(0, axis.size, 2)})


@pytest.mark.parametrize("kind", KINDS)
def test_dims_that_are_combinations_of_others_are_made_up_for(kind: type[Attention]) -> None:
    program = planted(kind, DIM // 2)
    selection = halved(program)
    slim = apply(program, selection)
    done = repair(program, slim, selection, calibration(program, 8, 16, 9, WIDTH), "none+logits")
    x = normal(16, 9, WIDTH, seed=99)
    assert error(slim, program, x) > 1e-2
    assert error(done.program, program, x) < 1e-8
    (fit,) = done.matrices
    assert fit.how in ("logits", "logits about the mean key")
    assert fit.after < 1e-8 < fit.before
    assert verify(program, done.program, selection, done.changed).relative <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_other_dims_come_nearer(kind: type[Attention]) -> None:
    program = free(kind(), 4, 9, WIDTH)
    selection = halved(program)
    slim = apply(program, selection)
    data, x = calibration(program, 8, 16, 9, WIDTH), normal(64, 9, WIDTH, seed=99)
    errors = {how: error(repair(program, slim, selection, data, how).program, program, x) for how in HOWS}
    assert errors["none+logits"] < 0.6 * error(slim, program, x)
    assert errors["all+logits"] < 0.6 * errors["all"]


HOWS = ("none+logits", "all", "all+logits")


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_families_are_no_worse_on_held_back_rows_and_proved(name: str) -> None:
    axes = [axis for axis in analyze(captured(name, dynamic=True)).axes if axis.role == "qk"]
    program, _, done = repaired(
        name, Selection({axis.name: range(axis.size // 2) for axis in axes}), "none+logits"
    )
    assert len(done.matrices) == len(axes) == 2
    assert all(fit.after < fit.before for fit in done.matrices)
    selection = Selection({axis.name: range(axis.size // 2) for axis in axes})
    assert verify(program, done.program, selection, done.changed).relative <= 1e-5


def test_a_basis_that_is_no_better_on_held_back_rows_is_not_taken() -> None:
    """The kept dims are all that there is: the others are silent."""
    model = Attention()
    with torch.no_grad():
        model.q.weight.view(HEADS, DIM, WIDTH)[:, 1::2] = 0
        model.q.bias.view(HEADS, DIM)[:, 1::2] = 0
    program = free(model, 4, 9, WIDTH)
    selection = halved(program)
    slim = apply(program, selection)
    done = repair(program, slim, selection, calibration(program, 8, 16, 9, WIDTH), "none+logits")
    assert [(fit.how, fit.tensors) for fit in done.matrices] == [("as it was", ())]


def test_a_rotary_embedding_is_left_alone_with_the_reason() -> None:
    axes = [axis for axis in analyze(captured("llama", dynamic=True)).axes if axis.role == "qk"]
    _, slim, done = repaired("llama", Selection({axes[0].name: range(axes[0].size - 1)}), "none+logits")
    assert done.changed == ()
    assert done.program is slim
    assert all("is no matrix of its own" in why for why in done.refused.values())
    assert len(done.refused) == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("some+logits", "repair must be one of none, mean, readers, all"),
        ("all+some", r"repair may go on with \+kernels, \+norms, \+logits, got 'some'"),
    ],
)
def test_an_unknown_repair_is_said(how: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_repair(how)
