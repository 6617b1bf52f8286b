"""Helpers for the tests of blocks: gates on the blocks of three tiny families, random masks, and the expected numbers of parameters."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fxprune import analyze
from fxprune.gates import Gate, Gated, find_blocked_weights
from fxprune.gates.blocked_weights import grid
from fxprune.gates.insert import gate
from support.gated import family

FAMILIES = ("bert", "gpt2", "t5")
HEADS = 4

# Of one layer: (queries, keys, values, output) and (in, out), by the endings of their names; fused ones are cut in three.
ATTENTIONS = (
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    ("attn.c_attn", "", "", "attn.c_proj"),
    ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o"),
    ("EncDecAttention.q", "EncDecAttention.k", "EncDecAttention.v", "EncDecAttention.o"),
)
FORWARDS = (
    ("intermediate.dense", "output.dense"),
    ("mlp.c_fc", "mlp.c_proj"),
    ("DenseReluDense.wi", "DenseReluDense.wo"),
)


@cache
def blocked(name: str, along: int = 4, across: int = 4) -> Gated:
    """A family with gates on the blocks of all its matrices of heads and neurons."""
    program = family(name)
    analysis = analyze(program)
    found = find_blocked_weights(analysis, ("heads", "qk", "v", "ffn"))
    grids = {site.matrix.weight: grid(analysis, site, along, across) for site in found}
    return gate(program, blocks=grids, biases=True)


def drawn(on: Gated, seed: int) -> dict[Gate, Tensor]:
    """Random masks, of all densities; whole rows and columns of blocks are missing more often than by chance."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    density = 0.2 + 0.8 * float(torch.rand((), generator=random))
    for one in on.gates:
        assert one.grid is not None
        rows, columns = one.grid.shape
        left = [torch.rand(size, generator=random) < density for size in (rows, columns)]
        few = torch.rand(rows, columns, generator=random) < density
        found[one] = few & left[0][:, None] & left[1]
        if bool(torch.rand((), generator=random) < 0.05):
            found[one] = torch.zeros(rows, columns, dtype=torch.bool)
    return found


# The norm before a branch, which the branch alone reads: gone where the branch is empty.
NORMS = {
    "attn.c_attn": "ln_1.",
    "mlp.c_fc": "ln_2.",
    "SelfAttention.q": "layer_norm.",
    "EncDecAttention.q": "layer_norm.",
    "DenseReluDense.wi": "layer_norm.",
}


def counted(on: Gated, masks: dict[Gate, Tensor]) -> int:
    """The parameters that must be left: of each head its dims with rows and columns, of each layer its neurons with both."""
    base = on.base.parameters()
    open_ = {g.of.removesuffix(".weight"): _matrix(g, mask) for g, mask in masks.items()}
    left = {name: value.numel() for name, value in base.items() if name.rpartition(".")[0] not in open_}
    for first, names in _branches(open_):
        stem = names[0].removesuffix(first)
        parts = [part for name in names for part in _thirds(open_[name], fused=name.endswith("c_attn"))]
        found = (_attention if len(parts) == 4 else _forward)(parts, f"{names[0]}.bias" in base)
        left[names[0]] = found
        if found <= len(parts[-1]) and first in NORMS:
            left = {name: n for name, n in left.items() if not name.startswith(stem + NORMS[first])}
    return sum(count for name, count in left.items() if name not in _unread(left))


def _branches(open_: dict[str, Tensor]) -> list[tuple[str, list[str]]]:
    """The matrices of each attention and each feed-forward block, with the ending of the first."""
    rows = [tuple(filter(None, row)) for row in (*ATTENTIONS, *FORWARDS)]
    return [
        (row[0], [name.removesuffix(row[0]) + ending for ending in row])
        for row in rows
        for name in open_
        if name.endswith(row[0])
    ]


def _thirds(matrix: Tensor, fused: bool) -> list[Tensor]:
    return list(matrix.chunk(3)) if fused else [matrix]


def _unread(left: dict[str, int]) -> set[str]:
    """The names of position tables that no head adds (T5)."""
    found: set[str] = set()
    for side in ("encoder", "decoder"):
        own = [
            count
            for name, count in left.items()
            if name.startswith(side) and name.endswith("SelfAttention.q")
        ]
        if not any(own):
            found |= {name for name in left if name.startswith(side) and "relative_attention_bias" in name}
    return found


def _matrix(one: Gate, mask: Tensor) -> Tensor:
    """The mask of open weights, [outputs, columns]."""
    assert one.grid is not None
    wide = one.grid.spread(mask)
    return wide.t() if one.outputs else wide


def _attention(parts: list[Tensor], biased: bool) -> int:
    q, k, v, out = parts
    width, results = q.shape[1] + biased, len(out)
    value = (v.any(1) & out.any(0)).reshape(HEADS, -1)
    key = (q.any(1) & k.any(1)).reshape(HEADS, -1)
    total = results * biased
    for dims, keys in zip(value.sum(1).tolist(), key.sum(1).tolist(), strict=True):
        if dims:
            total += 2 * max(1, keys) * width + dims * (width + results)
    return total


def _forward(parts: list[Tensor], biased: bool) -> int:
    first, second = parts
    left = int((first.any(1) & second.any(0)).sum())
    return left * (first.shape[1] + biased + len(second)) + len(second) * biased
