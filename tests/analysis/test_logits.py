# mypy: disable-error-code="no-any-return"
"""Attention logits: found from contractions of two matrices' results, head by head, and refused where a basis would not cancel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import analyze
from fxprune.analysis.logits import Logits, find_logits
from support.models import captured
from support.repaired import free

WIDTH, DIM = 12, 4


class Compared(nn.Module):
    """Queries and keys of three heads, and their logits; a subclass changes either before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(WIDTH, 3 * DIM), nn.Linear(WIDTH, 3 * DIM)
        self.norm, self.one = nn.LayerNorm(DIM), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (part(x).unflatten(-1, (3, DIM)).transpose(1, 2) for part in (self.q, self.k))
        return self.compared(q, k)

    def compared(self, q: Tensor, k: Tensor) -> Tensor:
        return ((self.one * q) / 2) @ k.transpose(-1, -2)


class Normed(Compared):
    def compared(self, q: Tensor, k: Tensor) -> Tensor:
        return self.norm(q) @ k.transpose(-1, -2)


class Turned(Compared):
    """Queries are scaled by their place, as a rotary embedding does."""

    def compared(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * torch.arange(1.0, q.shape[2] + 1)[:, None]) @ k.transpose(-1, -2)


class Dynamic(Compared):
    """The scale comes from the input: one number for all, but not a constant."""

    def compared(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * q.mean().relu()) @ k.transpose(-1, -2)


class ReadTwice(Compared):
    def compared(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2) + q.exp().sum(-1, keepdim=True)


class Gram(Compared):
    def compared(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ q.transpose(-1, -2) + k.sum()


class Across(Compared):
    """Every head of queries meets every head of keys."""

    def compared(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.einsum("bhid,bgjd->bhgij", q, k)


def found(model: nn.Module) -> Logits | str:
    program = free(model, 2, 5, WIDTH)
    (each,) = [each for _, each in find_logits(program, analyze(program).flow)]
    return each


def test_heads_are_paired_by_what_they_share() -> None:
    logits = found(Compared())
    assert isinstance(logits, Logits)
    assert logits.query.channels.tolist() == [[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(3)]
    assert logits.groups == (([0], [0]), ([1], [1]), ([2], [2]))
    assert [logits.query.matrix.weight, logits.key.matrix.weight] == ["q.weight", "k.weight"]
    assert (logits.query.place, logits.key.place) == (3, 2)


def test_heads_that_meet_all_have_one_basis() -> None:
    logits = found(Across())
    assert isinstance(logits, Logits)
    assert logits.groups == (([0, 1, 2], [0, 1, 2]),)


def test_rows_come_back_as_the_value_that_they_were() -> None:
    logits = found(Compared())
    assert isinstance(logits, Logits)
    value = torch.randn(2, 3, DIM, 7)
    rows = logits.key.rows(value)
    assert rows.shape == (3, 14, DIM)
    assert torch.equal(logits.key.value_of(rows, value), value)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Normed, "aten.layer_norm.default is no matrix of its own that layer_norm moves, copies or scales"),
        (Turned, "aten.mul.Tensor is no matrix of its own"),
        (Dynamic, "aten.mul.Tensor is no matrix of its own"),
        (ReadTwice, "aten.exp.default reads transpose's channels as well"),
        (Gram, "an output of linear is compared in two ways"),
    ],
)
def test_what_a_basis_would_change_is_refused(kind: type[Compared], why: str) -> None:
    said = found(kind())
    assert isinstance(said, str)
    assert why in said


def test_a_rotary_embedding_is_refused_by_the_line_that_applies_it() -> None:
    program = captured("llama", dynamic=True)
    said: list[Any] = [each for _, each in find_logits(program, analyze(program).flow)]
    assert len(said) == 2
    assert all(
        "aten.add.Tensor is no matrix of its own" in each and "apply_rotary_pos_emb" in each for each in said
    )
