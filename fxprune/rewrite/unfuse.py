"""Unfuse: split a fused matrix along its outputs into separate matrices (queries, keys and values of one product, say).

Each part is then a matrix like others: `factorize` may take one of them, and leave the rest.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Matrix, analyze, matrices
from fxprune.errors import RefusedError, SelectionError
from fxprune.ir import Program, add_parameter, bind, call, copy_graph, rebuild
from fxprune.ir.arguments import unbind
from fxprune.rewrite.dead_code import remove_dead

aten = torch.ops.aten


def unfuse(program: Program, sizes: Mapping[str, Sequence[int]]) -> Program:
    """Split weights, by name, into parts of these sizes along their outputs: `name_0`, `name_1` and so on; the program computes the same.

    Where the product is only split again at the same places, its parts are read without being joined first. RefusedError for a weight
    that something else reads as well (a tie stays a tie); SelectionError for sizes that don't add up to the outputs.
    """
    owners = {matrix.weight: matrix for matrix in matrices(program, analyze(program).flow).values()}
    graph = rebuild(program, copy_graph(program), {}).graph_module
    nodes = dict(zip(program.graph.nodes, graph.graph.nodes, strict=True))
    tensors = dict(program.tensors())
    for name, parts in sizes.items():
        if name not in owners:
            raise RefusedError(
                f"{name} is no matrix of one product alone (it is tied, shared, or not there): it stays whole"
            )
        _split_product(graph, nodes[owners[name].node], owners[name], parts, tensors)
    remove_dead(graph)
    return rebuild(program.replace(graph_module=graph), graph.graph, tensors).replace(labels={})


def _split_product(
    graph: fx.GraphModule, node: fx.Node, matrix: Matrix, sizes: Sequence[int], tensors: dict[str, Tensor]
) -> None:
    """Replace one product by a product for each part."""
    weight = tensors[matrix.weight]
    outputs = len(matrix.read(weight))
    if sum(sizes) != outputs or min(sizes) < 1:
        raise SelectionError(
            f"{matrix.weight} has {outputs} outputs, and parts of {list(sizes)} don't make them"
        )
    along = -matrix.outputs
    parts = matrix.read(weight.detach()).split(list(sizes))
    biases = tensors[matrix.bias].detach().split(list(sizes)) if matrix.bias else [None] * len(sizes)
    with graph.graph.inserting_before(node):
        pieces = enumerate(zip(parts, biases, strict=True))
        made = [_product(graph, node, matrix, (i, part, bias), tensors) for i, (part, bias) in pieces]
        if _is_split_alike(node, sizes, along):
            for user in [each for split in node.users for each in split.users]:
                place: Any = user.args[1]
                user.replace_all_uses_with(made[place])
            return
        joined = call(graph, aten.cat.default, (made, along))
    joined.meta |= {key: value for key, value in node.meta.items() if key != "val"}
    node.replace_all_uses_with(joined)


def _product(
    graph: fx.GraphModule,
    node: fx.Node,
    matrix: Matrix,
    part: tuple[int, Tensor, Tensor | None],
    tensors: dict[str, Tensor],
) -> fx.Node:
    """Add the product of one part, with the operator and other arguments of the whole."""
    place, rows, bias = part
    like = tensors[matrix.weight]
    stored = rows.t() if matrix.form.turned else rows.reshape(len(rows), *like.shape[1:])
    values = {matrix.form.weight: (f"{matrix.weight}_{place}", stored, like.requires_grad)}
    if bias is not None:
        learned = tensors[matrix.bias].requires_grad
        values[matrix.form.bias] = (f"{matrix.bias}_{place}", bias, learned)
    given = {name: argument.value for name, argument in bind(node).items()}
    for operand, (name, value, learned) in values.items():
        tensors[name] = nn.Parameter(value.clone(memory_format=torch.contiguous_format), learned)
        given[operand] = add_parameter(graph, name, tensors[name])
    return call(graph, node.target, *unbind(node, given))


def _is_split_alike(node: fx.Node, sizes: Sequence[int], along: int) -> bool:
    """Return whether every reader of a product splits it into parts of these sizes, and reads the parts only."""
    rank = node.meta["val"].dim()
    for user in node.users:
        args: Any = user.args
        if user.target is not aten.split_with_sizes.default or list(args[1]) != list(sizes):
            return False
        if (args[2] if len(args) > 2 else 0) % rank != along % rank:
            return False
        if any(each.target is not operator.getitem for each in user.users):
            return False
    return bool(node.users)
