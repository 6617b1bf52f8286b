"""Linear algebra: operators on whole matrices pin the dims of the matrices; batch dims pass through."""

from __future__ import annotations

from itertools import pairwise

import torch

from fxprune.rules.facts import Dims, Shape
from fxprune.rules.notation import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.traits import packets

aten = torch.ops.aten

_WHOLE = """
    linalg_cholesky linalg_cholesky_ex cholesky cholesky_inverse linalg_inv linalg_inv_ex inverse linalg_det det linalg_slogdet slogdet
    logdet
    linalg_matrix_exp matrix_exp linalg_matrix_power matrix_power linalg_pinv pinverse linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh
    linalg_qr qr linalg_svd svd linalg_svdvals linalg_lu linalg_lu_factor linalg_lu_factor_ex _lu_with_info geqrf linalg_ldl_factor
    linalg_ldl_factor_ex linalg_cond linalg_matrix_rank
"""


@rule(*packets(_WHOLE), zero="lose")
def _whole(op: Op) -> Dims:
    """Pin the last two dims of the first operand, which are one matrix, and all dims of further operands (a tolerance)."""
    first, *others = op.tensors()
    shape: Shape = op.flow.dims[first]
    why = f"{op.node.target} reads whole matrices"
    op.pin(shape[-2:], why)
    for node in others:
        op.pin(op.flow.dims[node], why)
    if isinstance(op.node.meta["val"], (tuple, list)):
        return tuple(_batched(op, shape[:-2], out, why) for out in op.outs)
    return _batched(op, shape[:-2], op.out, why)


def _batched(op: Op, lead: Shape, sizes: tuple[int, ...], why: str) -> Shape:
    if sizes[: len(lead)] != tuple(dim.size for dim in lead):
        op.pin(lead, why)  # an empty result that was not asked for
        lead = ()
    return (*lead, *op.fixed(sizes[len(lead) :], why))


@rule(aten.linalg_solve, aten.linalg_solve_ex, aten.linalg_solve_triangular, zero="lose")
def solve(op: Op) -> Dims:
    """`* n! n!, * n! k -> * n! k`; the right-hand sides are independent where they are columns."""
    name = "A" if "A" in op.arguments else "self"
    square, given = op.dims(name), op.dims("B")
    sides = len(given) >= len(square) and op["left"] is not False
    why = f"{op.node.target} reads whole matrices"
    op.pin((*square[-2:], *(given[-2:-1] if sides else given)), why)
    if not sides:
        op.pin(square, why)
        result: Shape = op.fixed(_first(op), why)
    else:
        lead = broadcast(op, [square[:-2], given[:-2]], _first(op)[:-2])
        result = (*lead, *given[-2:])
    if not isinstance(op.node.meta["val"], (tuple, list)):
        return result
    return (result, *(_batched(op, square[:-2], out, why) for out in op.outs[1:]))


def _first(op: Op) -> tuple[int, ...]:
    return op.outs[0] if isinstance(op.node.meta["val"], (tuple, list)) else op.out


@rule(aten.cross, aten.linalg_cross, zero="times")
def cross(op: Op) -> Shape:
    """Pin the dim of three components, which are read by position; the others broadcast."""
    shapes = [op.dims("self"), op.dims("other")]
    result = broadcast(op, shapes, op.out)
    # without `dim` it takes the first dim of size 3, which may become another one: then all are pinned
    places = range(len(op.out)) if op["dim"] is None else [op.integer("dim") % len(op.out)]
    op.pin([result[i] for i in places], f"{op.node.target} tells its positions apart")
    return result


@rule(aten.linalg_multi_dot, aten.chain_matmul, zero="lose")
def chain(op: Op) -> Shape:
    """Contract each matrix with the next; the first and the last may be vectors."""
    shapes = [op.flow.dims[node] for node in op.tensors()]
    nodes = op.tensors()
    for place, (left, right) in enumerate(pairwise(shapes)):
        op.contract(op.unify(left[-1], right[0]), nodes[place], nodes[place + 1])
    return (*shapes[0][:-1], *shapes[-1][1:])
