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

from fxprune.analysis.linear_ops import GEOMETRY, can_lose_bias, is_plain
from fxprune.errors import RefusedError, SelectionError
from fxprune.ir import Program, add_parameter, bind, call, copy_graph, rebuild, source_line, storage_key
from fxprune.ir.arguments import unbind
from fxprune.ir.naming import FACTORS
from fxprune.rewrite.dead_code import remove_dead
from fxprune.rules import Linear, packet_of, traits_of

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
            shaped = factor.reshape(*factor.shape, *weight.shape[2:])
            copied = shaped.clone(memory_format=torch.contiguous_format)
            made.setdefault(own, nn.Parameter(copied, weight.requires_grad))
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
        linear = traits_of(user.target).linear
        is_lookup = packet_of(user.target) is aten.embedding
        argument = linear.weight if linear and linear.matrix else "weight" if is_lookup else ""
        if not argument or bind(user)[argument].value is not read:
            raise RefusedError(
                f"{name} is read by {user.name} = {user.target} ({source_line(user)}), which no two products can stand for: it stays whole"
            )
        both = (rows, columns)
        with graph.graph.inserting_before(user):
            substitute = _products(graph, user, linear, both) if linear else _lookup(graph, user, both)
        user.target, user.args, user.kwargs = substitute


def _parameter(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    node: fx.Node
    for node in graph.graph.find_nodes(op="get_attr"):
        if node.target == name:
            return node
    return add_parameter(graph, name, value)


Call: TypeAlias = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""(operator, arguments, named arguments)."""


def _given(node: fx.Node) -> dict[str, Any]:
    return {name: argument.value for name, argument in bind(node).items()}


def _products(graph: fx.GraphModule, node: fx.Node, linear: Linear, factors: tuple[fx.Node, fx.Node]) -> Call:
    """Add the first product, and return the second, which has the bias; the first has a convolution's geometry, for zeros stay zeros."""
    given = _given(node)
    defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    if given.get("groups", 1) != 1:
        raise RefusedError(
            f"{node.name} = {node.target} has {given['groups']} groups; its weight stays whole"
        )
    if not can_lose_bias(node, linear) or not (is_plain(node, linear) or linear.bare):
        raise RefusedError(
            f"{node.name} = {node.target} has arguments that no first product can have; its weight stays whole"
        )
    thin, wide = factors if linear.turned else factors[::-1]
    geometry = [name for name in GEOMETRY if name in given and linear.spatial]
    own = {linear.input: given[linear.input], linear.weight: thin}
    first = defaults | {name: given[name] for name in geometry} | own
    target = linear.bare or node.target
    args, kwargs = (tuple(own.values()), {}) if linear.bare else unbind(node, first)
    inner = _existing(thin, target, (args, kwargs)) or call(graph, target, args, kwargs)
    second = given | {name: defaults[name] for name in geometry} | {linear.input: inner, linear.weight: wide}
    return node.target, *unbind(node, second)


def _existing(factor: fx.Node, target: Any, arguments: tuple[Any, Any]) -> fx.Node | None:
    """Return the same product by a factor where there is one; `arguments` are those of a node, and those by name."""
    same = (n for n in factor.users if n.target is target and (n.args, n.kwargs) == arguments)
    return next(same, None)


def _lookup(graph: fx.GraphModule, node: fx.Node, factors: tuple[fx.Node, fx.Node]) -> Call:
    rows, columns = factors
    given = _given(node)
    args = (rows, given["indices"], given["padding_idx"])
    found = _existing(rows, aten.embedding.default, (args, {})) or call(graph, aten.embedding.default, args)
    return aten.matmul.default, (found, columns), {}
