"""Constants: an input of a product that is always the same number moves into the product's bias, and its column becomes zero.

What is left of a neuron whose row of weights is empty is such a number: its bias behind the activation, the same for every row of inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Matrix, matrices, walk
from fxprune.analysis.constant_propagation import Known, known
from fxprune.ir import Program, attribute, bind, call, copy_graph, rebuild, set_attribute
from fxprune.ir.edit import fake_mode
from fxprune.ir.program import sibling

aten = torch.ops.aten


def absorbed(program: Program) -> Program:
    """The program with constant inputs of products in their biases; equal but for rounding.

    A product without a bias gets one. Convolutions are left alone where they pad, for a border reads fewer of the constants.
    """
    facts = known(program)
    found = {m: _constant(m, facts) for m in matrices(program, walk(program)).values()}
    own = {m: (places, numbers) for m, (places, numbers) in found.items() if _is_read(program, m, places)}
    if not own:
        return program
    graph = rebuild(program, copy_graph(program), {}).graph
    nodes = dict(zip(program.graph.graph.nodes, graph.graph.nodes, strict=True))
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
    return rebuild(program.replace(graph=graph), graph.graph, tensors)


def _constant(matrix: Matrix, facts: Known) -> tuple[Tensor, Tensor]:
    """(which columns of the input are the same number in each row, these numbers)."""
    rows = matrix.rows(facts.values_at[matrix.source])
    same = (matrix.rows(facts[matrix.source].to(rows.dtype)) == 1).all(0) & (rows == rows[:1]).all(0)
    return same & (rows[0] != 0), rows[0]


def _is_read(program: Program, matrix: Matrix, places: Tensor) -> bool:
    """Whether a column that reads a constant has a weight in it."""
    weight = matrix.read(attribute(program.graph, matrix.weight))
    return bool((weight[:, places] != 0).any())


def _with_bias(
    graph: fx.GraphModule, node: fx.Node, matrix: Matrix, value: Tensor, tensors: dict[str, Tensor]
) -> None:
    """Give a product a bias: as its own operand where it takes one, else added behind it."""
    name = sibling(matrix.weight, "bias", tensors)
    tensors[name] = nn.Parameter(value.contiguous())
    set_attribute(graph, name, tensors[name])
    with graph.graph.inserting_before(node):
        read = graph.graph.get_attr(name)
    read.meta["val"] = fake_mode(graph).from_tensor(tensors[name], static_shapes=True)
    slot = matrix.form.operands[2]
    if slot:
        place = list(bind(node)).index(slot)
        node.args = (*node.args[:place], read, *node.args[place + 1 :])
        return
    with graph.graph.inserting_after(node):
        total = call(graph, aten.add.Tensor, (node, read))
    total.meta |= {key: value for key, value in node.meta.items() if key != "val"}
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
