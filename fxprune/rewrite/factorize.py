"""Factorize: replace a matrix by the product of two thinner ones; their inner dimension, the rank, is a new axis that can shrink.

A weight W (a × b, as it is stored) becomes A (a × rank), under W's name and `_rows`, times B (rank × b), `_columns`. All that reads W
reads both, so that a tie stays a tie: the embedding and the head that share a table share its factors. Weights whose given factors are
one tensor share it: queries, keys and values can read one thin product of their input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from fxprune.errors import RefusedError, SelectionError
from fxprune.ir import Program, add_parameter, bind, call, copy_graph, rebuild, source_line, storage_key
from fxprune.ir.naming import FACTORS
from fxprune.rewrite.dead_code import remove_dead
from fxprune.rules import packet_of

aten = torch.ops.aten

Factors: TypeAlias = tuple[Tensor, Tensor]
"""A (a × rank) and B (rank × b)."""


@dataclass(frozen=True, eq=False)
class Factorized:
    """Result of `factorize`: the program, and for each weight the error ‖W − A B‖ / ‖W‖ (Frobenius) and the names of its factors."""

    program: Program
    errors: Mapping[str, float]
    names: Mapping[str, tuple[str, str]]


def svd(weight: Tensor, rank: int) -> Factors:
    """Return the closest product of this rank (Eckart–Young): A = U S, B = Vᵀ, computed in float64."""
    u, s, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]).to(weight.dtype), v[:rank].to(weight.dtype)


def factorize(
    program: Program,
    ranks: Mapping[str, int],
    split: Callable[[Tensor, int], Factors] = svd,
    factors: Mapping[str, Factors] | None = None,
) -> Factorized:
    """Replace weights, by name, by products of these ranks: of given factors (as the weight is stored), else of those that `split` returns.

    Where several of the given factors are the same tensor, there is one parameter, and equal products by the first factor are computed
    once. The second product keeps the name of the node that it replaces. RefusedError for a weight that is no matrix, or that has a reader
    that no product can replace; SelectionError for a name that is not there, or a rank that the weight does not have.
    """
    graph = rebuild(program, copy_graph(program), {}).graph_module
    made: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    names: dict[str, tuple[str, str]] = {}
    known: list[tuple[Tensor, str]] = []
    given = factors or {}
    weights = {name: _weight(program, name, rank, name in given) for name, rank in ranks.items()}
    for name in sorted(weights, key=list(program.tensors()).index):
        weight, matrix = weights[name], weights[name].detach().flatten(1)
        both = given.get(name) or split(matrix, ranks[name])
        errors[name] = float((matrix - both[0] @ both[1]).norm() / matrix.norm().clamp(min=1e-30))
        rows, columns = (
            _known(known, factor, f"{name}{part}") for factor, part in zip(both, FACTORS, strict=True)
        )
        for own, factor in zip((rows, columns), both, strict=True):
            shaped = factor.reshape(*factor.shape, *weight.shape[2:]).clone(
                memory_format=torch.contiguous_format
            )
            made.setdefault(own, nn.Parameter(shaped, weight.requires_grad))
        names[name] = rows, columns
        for node in _reads(program, graph, name):
            _replace(graph, node, made, names[name], name)
    remove_dead(graph)
    slim = rebuild(program.replace(graph_module=graph), graph.graph, made)
    return Factorized(slim.replace(labels={}), errors, names)


def _known(known: list[tuple[Tensor, str]], factor: Tensor, name: str) -> str:
    """Return the name under which a factor is there already, else the given one, which is recorded for it."""
    same = next((own for other, own in known if other is factor), None)
    if same is None:
        known.append((factor, name))
    return same or name


def _weight(program: Program, name: str, rank: int, is_given: bool) -> Tensor:
    """Return the weight; a rank beyond its own makes sense only where given factors are shared with others."""
    known = program.tensors()
    if name not in known:
        raise SelectionError(f"no weight {name!r} in this program; weights: {', '.join(list(known)[:8])} …")
    weight = known[name]
    flat = tuple(weight.flatten(1).shape) if weight.ndim > 1 else tuple(weight.shape)
    if weight.ndim < 2 or not weight.is_floating_point() or any(size != 1 for size in weight.shape[2:]):
        raise RefusedError(f"{name} is no matrix: {tuple(weight.shape)} {weight.dtype}; it stays whole")
    if not 1 <= rank <= (rank if is_given else min(flat)):
        raise SelectionError(f"{name} is {flat[0]} × {flat[1]}: its rank may be 1 to {min(flat)}, not {rank}")
    return weight


def _reads(program: Program, graph: fx.GraphModule, name: str) -> list[fx.Node]:
    """Return the nodes that read the tensor, under any of its names."""
    known = program.tensors()
    same = {other for other, value in known.items() if storage_key(value) == storage_key(known[name])}
    return [node for node in graph.graph.find_nodes(op="get_attr") if node.target in same]


def _replace(
    graph: fx.GraphModule, read: fx.Node, made: Mapping[str, Tensor], names: tuple[str, str], name: str
) -> None:
    """Replace each reader of a weight by two products."""
    with graph.graph.inserting_before(read):
        rows, columns = (_parameter(graph, own, made[own]) for own in names)
    for user in list(read.users):
        form = _FORMS.get(packet_of(user.target)) if user.op == "call_function" else None
        argument, product = form or ("", None)
        if product is None or bind(user)[argument].value is not read:
            raise RefusedError(
                f"{name} is read by {user.name} = {user.target} ({source_line(user)}), which no two products can stand for: it stays whole"
            )
        with graph.graph.inserting_before(user):
            user.target, user.args, user.kwargs = product(graph, user, rows, columns)


def _parameter(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    node: fx.Node
    for node in graph.graph.find_nodes(op="get_attr"):
        if node.target == name:
            return node
    return add_parameter(graph, name, value)


Call: TypeAlias = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""(operator, arguments, named arguments)."""

Product: TypeAlias = Callable[[fx.GraphModule, fx.Node, fx.Node, fx.Node], Call]
"""(graph, the node that reads W, A, B) to the call that replaces that node; the first product is added to the graph."""


def _arguments(node: fx.Node) -> dict[str, Any]:
    return {name: argument.value for name, argument in bind(node).items()}


def _first(graph: fx.GraphModule, factor: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """Return the product by the first factor, an existing one where it is the same."""
    same = [user for user in factor.users if user.target is target and tuple(user.args) == args]
    found: fx.Node = same[0] if same else call(graph, target, args)
    return found


def _linear(graph: fx.GraphModule, node: fx.Node, rows: fx.Node, columns: fx.Node) -> Call:
    given = _arguments(node)
    inner = _first(graph, columns, aten.linear.default, (given["input"], columns))
    return aten.linear.default, (inner, rows, given["bias"]), {}


def _sum(graph: fx.GraphModule, node: fx.Node, rows: fx.Node, columns: fx.Node) -> Call:
    given = _arguments(node)
    inner = _first(graph, rows, aten.mm.default, (given["mat1"], rows))
    scales = {"beta": given["beta"], "alpha": given["alpha"]}
    return aten.addmm.default, (given["self"], inner, columns), scales


def _matrix(first: str) -> Product:
    def product(graph: fx.GraphModule, node: fx.Node, rows: fx.Node, columns: fx.Node) -> Call:
        inner = _first(graph, rows, node.target, (_arguments(node)[first], rows))
        return node.target, (inner, columns), {}

    return product


def _lookup(graph: fx.GraphModule, node: fx.Node, rows: fx.Node, columns: fx.Node) -> Call:
    given = _arguments(node)
    found = _first(graph, rows, aten.embedding.default, (rows, given["indices"], given["padding_idx"]))
    return aten.matmul.default, (found, columns), {}


def _convolution(graph: fx.GraphModule, node: fx.Node, rows: fx.Node, columns: fx.Node) -> Call:
    """Factorize a convolution of one point: stride and padding belong to the first product, for zeros stay zeros."""
    given = _arguments(node)
    if given["groups"] != 1:
        raise RefusedError(
            f"{node.name} = {node.target} has {given['groups']} groups; its weight stays whole"
        )
    thin = (given["input"], columns, None, given["stride"], given["padding"])
    inner = _first(graph, columns, node.target, thin)
    return node.target, (inner, rows, given["bias"]), {}


#: operator: (the argument that is the weight, the product of two factors that replaces it)
_FORMS: dict[Any, tuple[str, Product]] = {
    aten.linear: ("weight", _linear),
    aten.addmm: ("mat2", _sum),
    aten.mm: ("mat2", _matrix("self")),
    aten.matmul: ("other", _matrix("self")),
    aten.embedding: ("weight", _lookup),
    aten.conv1d: ("weight", _convolution),
    aten.conv2d: ("weight", _convolution),
}
