"""Absorb constant inputs: move each input of a product that is always the same number into the product's bias, and zero its column.

A neuron whose row of weights is zero gives such a constant: its bias after the activation, the same for every row of inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Matrix, analyze, matrices
from fxprune.analysis.constant_propagation import ConstantMasks, propagate_constants
from fxprune.ir import Program, add_parameter, attribute, bind, call, copy_graph, rebuild
from fxprune.ir.program import sibling

aten = torch.ops.aten


def absorb_constants(program: Program, takes: Callable[[str], bool] = lambda weight: True) -> Program:
    """Return the program with the constant inputs of products moved into their biases; equal but for rounding.

    A product without a bias gets one. Columns of a convolution that read padding are left alone: their input is not constant at the border.
    `takes` says which weights they may leave.
    """
    facts = propagate_constants(program)
    products = [m for m in matrices(program, analyze(program).flow).values() if takes(m.weight)]
    found = {m: _constant(m, facts) for m in products}
    own = {m: (places, numbers) for m, (places, numbers) in found.items() if _is_read(program, m, places)}
    if not own:
        return program
    graph = rebuild(program, copy_graph(program), {}).graph_module
    nodes = dict(zip(program.graph.nodes, graph.graph.nodes, strict=True))
    tensors = program.tensors()
    for matrix, (places, numbers) in own.items():
        weight = matrix.read(tensors[matrix.weight].detach()).clone()
        added = weight[:, places] @ numbers[places].to(weight.dtype)
        weight[:, places] = 0
        tensors[matrix.weight] = matrix.write(weight, tensors[matrix.weight])
        if matrix.bias:
            bias = tensors[matrix.bias]
            tensors[matrix.bias] = nn.Parameter(bias.detach() + added, bias.requires_grad)
        else:
            _with_bias(graph, nodes[matrix.node], matrix, added, tensors)
    graph.recompile()
    return rebuild(program.replace(graph_module=graph), graph.graph, tensors)


def _constant(matrix: Matrix, facts: ConstantMasks) -> tuple[Tensor, Tensor]:
    """Return (booleans of the columns whose input is the same nonzero number in each row, the first row of the input)."""
    rows = matrix.rows(facts.values[matrix.source])
    same = (matrix.rows(facts.masks[matrix.source].to(rows.dtype)) == 1).all(0) & (rows == rows[:1]).all(0)
    return same & (rows[0] != 0), rows[0]


def _is_read(program: Program, matrix: Matrix, places: Tensor) -> bool:
    """Return whether any weight in the columns `places` is nonzero."""
    weight = matrix.read(attribute(program.graph_module, matrix.weight))
    return bool((weight[:, places] != 0).any())


def _with_bias(
    graph: fx.GraphModule, node: fx.Node, matrix: Matrix, value: Tensor, tensors: dict[str, Tensor]
) -> None:
    """Add a bias to a product: as the operator's bias operand where it has one, else by an addition after it."""
    name = sibling(matrix.weight, "bias", tensors)
    tensors[name] = nn.Parameter(value.contiguous())
    with graph.graph.inserting_before(node):
        read = add_parameter(graph, name, tensors[name])
    slot = matrix.form.bias
    if slot:
        place = list(bind(node)).index(slot)
        node.args = (*node.args[:place], read, *node.args[place + 1 :])
        return
    with graph.graph.inserting_after(node):
        total = call(graph, aten.add.Tensor, (node, read))
    total.meta |= {key: value for key, value in node.meta.items() if key != "val"}
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
