"""Attention as one operator: batch dims get the role heads, the contraction of q and k the role qk, the last dim of v the role v."""

from __future__ import annotations

import torch

from fxprune.dims import Dim, atom, product
from fxprune.rules.aten.normalization import shared
from fxprune.rules.facts import Shape
from fxprune.rules.notation import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention, zero="value")
def attention(op: Op) -> Shape:
    """`* h l e, * h s e, * h s v, mask? -> * h l v`, inexact over s; with enable_gqa the heads of q are Product(kv, rep)."""
    query, key, value = op.dims("query"), op.dims("key"), op.dims("value")
    e = op.unify(query[-1], key[-1])
    op.contract(e, "query", "key")
    shared(op, op.unify(key[-2], value[-2]))
    if op["is_causal"]:
        op.pin((query[-2], key[-2]), "a causal mask compares positions")
    lead = _lead(op, query, key, value)
    if op.has("attn_mask"):
        _mask(op, (*lead, query[-2], key[-2]))
    op.role(lead, "heads")
    op.role(e, "qk")
    op.role(value[-1], "v")
    return (*lead, query[-2], value[-1])


def _lead(op: Op, query: Shape, key: Shape, value: Shape) -> Shape:
    if not op["enable_gqa"] or query[-3].size == key[-3].size:
        return broadcast(op, [query[:-2], key[:-2], value[:-2]], op.out[:-2])
    kv = op.unify(key[-3], value[-3])
    rep: Dim = atom(query[-3].size // kv.size)
    op.unify(query[-3], product([kv, rep]))
    return (*broadcast(op, [query[:-3], key[:-3], value[:-3]], op.out[:-3]), query[-3])


def _mask(op: Op, scores: Shape) -> None:
    for dim, other in zip(reversed(scores), reversed(op.dims("attn_mask")), strict=False):
        op.unify(dim, other)
