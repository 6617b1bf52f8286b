"""Contractions: products that sum over a dimension. What is summed over, a removed unit leaves without a trace."""

from __future__ import annotations

import torch

from fxprune.dims import Dim
from fxprune.rules.op import Op, Shape, broadcast
from fxprune.rules.registry import declare, rule

aten = torch.ops.aten

declare(aten.linear, notation="* i, o i, o? -> * o", zero="affine", roles={"i": "ffn"})
declare(aten.mm, notation="m k, k n -> m n", zero="times", roles={"k": "ffn"})
declare(aten.mv, notation="m k, k -> m", zero="times", roles={"k": "ffn"})
declare(aten.dot, aten.vdot, notation="k, k -> ", zero="times")
declare(aten.outer, aten.ger, notation="m, n -> m n", zero="times")


@rule(aten.addmm, zero="value")
def addmm(op: Op) -> Shape:
    """`* , m k, k n -> m n`; the addend broadcasts."""
    (m, k), (other, n) = op.dims("mat1"), op.dims("mat2")
    op.unify(k, other)
    op.contract(k, "mat1", "mat2")
    op.role(k, "ffn")
    return broadcast(op, [(m, n), op.dims("self")], op.out)


@rule(aten.matmul, aten.bmm, zero="times")
def matmul(op: Op) -> Shape:
    """`* m k, * k n -> * m n`, without m or n for vectors; between two activations it is evidence for attention."""
    left, right = _operands(op)
    first, second = op.dims(left), op.dims(right)
    k = op.unify(first[-1], second[-2] if len(second) > 1 else second[0])
    op.contract(k, left, right)
    m, n = first[-2:-1], second[-1:] if len(second) > 1 else ()
    lead = broadcast(op, [first[:-2], second[:-2]], op.out[: len(op.out) - len(m) - len(n)])
    _roles(op, (left, right), lead, k, (*n,))
    return (*lead, *m, *n)


@rule(aten.baddbmm, zero="value")
def baddbmm(op: Op) -> Shape:
    """`*, b m k, b k n -> b m n`; the addend broadcasts."""
    first, second = op.dims("batch1"), op.dims("batch2")
    k = op.unify(first[2], second[1])
    b = op.unify(first[0], second[0])
    op.contract(k, "batch1", "batch2")
    _roles(op, ("batch1", "batch2"), (b,), k, (second[2],))
    return broadcast(op, [(b, first[1], second[2]), op.dims("self")], op.out)


def _operands(op: Op) -> tuple[str, str]:
    return ("self", "mat2") if "mat2" in op.arguments else ("self", "other")


def _roles(op: Op, names: tuple[str, str], lead: Shape, k: Dim, n: Shape) -> None:
    if not (op.varies(names[0]) and op.varies(names[1])):
        op.role(k, "ffn")
        return
    op.role(lead, "heads")
    op.role(k, "qk")
    op.role(n, "v")


@rule(aten.bilinear, zero="lose")
def bilinear(op: Op) -> Shape:
    """`* i, * j, o i j, o? -> * o`."""
    first, second, (o, i, j) = op.dims("input1"), op.dims("input2"), op.dims("weight")
    op.unify(first[-1], i)
    op.unify(second[-1], j)
    op.contract(i, "input1", "weight")
    op.contract(j, "input2", "weight")
    if op.has("bias"):
        op.unify(o, op.dims("bias")[0])
    return (*broadcast(op, [first[:-1], second[:-1]], op.out[:-1]), o)


@rule(aten.einsum, zero="times")
def einsum(op: Op) -> Shape:
    """The equation is the rule: equal letters unify, letters without a result are summed over."""
    left, _, right = op["equation"].replace(" ", "").partition("->")
    if "." in left or (not right and "->" not in op["equation"]):
        return op.opaque("an einsum with '...' or without '->' has no rule")
    words: dict[str, Dim] = {}
    carriers: dict[str, list[torch.fx.Node]] = {}
    for letters, node in zip(left.split(","), op.tensors(), strict=True):
        for letter, dim in zip(letters, op.flow.dims[node], strict=True):
            words[letter] = op.unify(words[letter], dim) if letter in words else dim
            carriers.setdefault(letter, []).append(node)
    _einsum_facts(op, words, carriers, right)
    return tuple(words[letter] for letter in right)


def _einsum_facts(
    op: Op, words: dict[str, Dim], carriers: dict[str, list[torch.fx.Node]], right: str
) -> None:
    both_vary = sum(node in op.flow.varies for node in op.tensors()) > 1
    for letter, dim in words.items():
        shared = len(carriers[letter]) > 1
        if letter not in right:
            op.contract(dim, *carriers[letter])
            op.role(dim, "qk" if both_vary else "ffn")
        elif both_vary:
            op.role(dim, "heads" if shared else "v")
