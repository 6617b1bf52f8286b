"""Contractions: products that sum over a dimension, from which units whose terms are zero can be removed exactly."""

from __future__ import annotations

import torch

from fxprune.dims import Dim, atom
from fxprune.rules.facts import Shape
from fxprune.rules.notation import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import declare, rule

aten = torch.ops.aten

declare(aten.linear, notation="* i, o i, o? -> * o", zero="affine", roles={"i": "ffn"})
declare(aten.mm, notation="m k, k n -> m n", zero="times", roles={"k": "ffn"})
declare(aten.mv, notation="m k, k -> m", zero="times", roles={"k": "ffn"})
declare(aten.dot, aten.vdot, notation="k, k -> ", zero="times")
declare(aten.outer, aten.ger, notation="m, n -> m n", zero="times")


@rule(aten.addmm, zero="affine")
def addmm(op: Op) -> Shape:
    """`* , m k, k n -> m n`; the addend broadcasts."""
    (m, k), (other, n) = op.dims("mat1"), op.dims("mat2")
    op.unify(k, other)
    op.contract(k, "mat1", "mat2")
    op.role(k, "ffn")
    return broadcast(op, [(m, n), op.dims("self")], op.out)


@rule(aten.matmul, aten.linalg_matmul, aten.bmm, zero="times")
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


@rule(aten.baddbmm, zero="affine")
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
    """Apply the equation: unify equal letters, contract letters that are not in the result, and broadcast `...`."""
    left, arrow, right = op["equation"].replace(" ", "").partition("->")
    shapes = [op.flow.dims[node] for node in op.tensors()]
    names = [_spelled(name, len(shape)) for name, shape in zip(left.split(","), shapes, strict=True)]
    if not arrow:
        right = "..." + "".join(sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1))
    dots = {letter for name in names for letter in name if letter.isdigit()}
    result = right.replace("...", "".join(sorted(dots, reverse=True)))
    words: dict[str, Dim] = {}
    carriers: dict[str, list[torch.fx.Node]] = {}
    for name, shape, node in zip(names, shapes, op.tensors(), strict=True):
        for letter, dim in zip(name, shape, strict=True):
            words[letter] = op.unify(words[letter], dim) if letter in words else dim
            carriers.setdefault(letter, []).append(node)
    _einsum_facts(op, words, carriers, result)
    return tuple(words[letter] for letter in result)


def _spelled(name: str, rank: int) -> str:
    """Return an operand's letters, with `...` replaced by digits that count from the right, so that equal digits align."""
    count = rank - len(name.replace("...", ""))
    return name.replace("...", "".join(str(place) for place in reversed(range(count))))


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


@rule(aten.addmv, zero="affine")
def addmv(op: Op) -> Shape:
    """`m?, m k, k -> m`."""
    (m, k), (other,) = op.dims("mat"), op.dims("vec")
    op.unify(k, other)
    op.contract(k, "mat", "vec")
    return broadcast(op, [(m,), op.dims("self")], op.out)


@rule(aten.addr, zero="lose")
def addr(op: Op) -> Shape:
    """`*, m, n -> m n`; the addend broadcasts."""
    return broadcast(op, [(*op.dims("vec1"), *op.dims("vec2")), op.dims("self")], op.out)


@rule(aten.addbmm, zero="affine")
def addbmm(op: Op) -> Shape:
    """`*, b m k, b k n -> m n`; the addend broadcasts."""
    (b, m, k), (other_b, other_k, n) = op.dims("batch1"), op.dims("batch2")
    op.unify(b, other_b)
    op.unify(k, other_k)
    op.contract(b, "batch1", "batch2")
    op.contract(k, "batch1", "batch2")
    return broadcast(op, [(m, n), op.dims("self")], op.out)


@rule(aten.inner, zero="times")
def inner(op: Op) -> Shape:
    """Contract the last dims; the other dims of the second operand follow those of the first."""
    one, other = op.dims("self"), op.dims("other")
    if not one or not other:
        return (*one, *other)
    op.unify(one[-1], other[-1])
    op.contract(one[-1], "self", "other")
    return (*one[:-1], *other[:-1])


@rule(aten.tensordot, zero="times")
def tensordot(op: Op) -> Shape:
    """Contract the named dims; the other dims of the second operand follow those of the first."""
    one, other = op.dims("self"), op.dims("other")
    left = [i % max(1, len(one)) for i in op.integers("dims_self")]
    right = [i % max(1, len(other)) for i in op.integers("dims_other")]
    for i, j in zip(left, right, strict=True):
        op.contract(op.unify(one[i], other[j]), "self", "other")
    kept = [dim for i, dim in enumerate(one) if i not in left]
    return (*kept, *(dim for i, dim in enumerate(other) if i not in right))


@rule(aten.linalg_vecdot, zero="times")
def vecdot(op: Op) -> Shape:
    """Contract one dim; the others broadcast."""
    shapes = [op.dims("x"), op.dims("y")]
    sizes = torch.broadcast_shapes(*(tuple(dim.size for dim in shape) for shape in shapes))
    shape = broadcast(op, shapes, tuple(sizes))
    place = op.integer("dim") % len(shape)
    op.contract(shape[place], "x", "y")
    return shape[:place] + shape[place + 1 :]


@rule("transformers::grouped_mm_fallback", zero="times")
def grouped_mm_fallback(op: Op) -> Shape:
    """`t i, e i o, e -> t o`."""
    return _grouped(op, "input", "weight")


@rule(aten._grouped_mm, zero="times")
def grouped_mm(op: Op) -> Shape:
    """`t i, e i o, e -> t o`; the forms without a dim of experts, and with a bias, have no rule."""
    if len(op.dims("self")) != 2 or len(op.dims("mat2")) != 3 or op.has("bias"):
        return op.opaque("this form of _grouped_mm has no rule")
    return _grouped(op, "self", "mat2")


def _grouped(op: Op, left: str, right: str) -> Shape:
    """Unify the dim of experts with the dim that the group offsets delimit, or pin it; contract the inner dim.

    Experts without rows can be removed where the offsets come from counts of the chosen.
    """
    rows, (expert, inner, outer) = op.dims(left), op.dims(right)
    numbered = op.chosen(op["offs"], "offsets")
    if numbered is None or numbered.size != expert.size:
        op.pin((expert, *op.dims("offs")), "rows find their expert by value")
    else:
        op.unify_all([expert, expert], [numbered, *op.dims("offs")])
    op.pin(rows[0], "rows find their expert by where groups end")
    op.unify(rows[1], inner)
    op.contract(inner, left, right)
    op.role(inner, "ffn")
    return rows[0], outer


@rule(aten.histc, zero="value")
def histogram(op: Op) -> Shape:
    """Give one bin to each position of the dim that the values number, and pin the values' dims; pin all where that dim is not known."""
    numbered = op.chosen(op["self"], "numbers") if op.node in op.flow.routing.counts else None
    if numbered is None or numbered.size != op.out[0]:
        return op.opaque(f"{op.node.target} counts values")
    op.pin(op.dims("self"), f"{op.node.target} counts values")
    bins = atom(op.out[0])
    op.unify(bins, numbered)
    op.size(numbered, "bins")
    op.size(numbered, "max", offset=-1)
    return (bins,)


@rule(aten.bincount, zero="lose")
def counts(op: Op) -> Shape:
    """Pin all dims: the counts depend on every row, and each bin stands for one value."""
    return op.opaque(f"{op.node.target} counts values")
