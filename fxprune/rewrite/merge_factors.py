"""Merge factors: replace two products with nothing between by one, W = A B, where that is no larger; a first bias goes through A.

x ─ B (rank × in) ─ A (out × rank) ─ y      becomes      x ─ W (out × in) ─ y
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxprune.analysis import Matrix, analyze, matrices
from fxprune.analysis.linear_ops import geometry
from fxprune.ir import Program, add_parameter, bind, copy_graph, rebuild
from fxprune.ir.arguments import unbind
from fxprune.ir.naming import FACTORS
from fxprune.ir.program import sibling
from fxprune.rewrite.dead_code import remove_dead
from fxprune.rules import packet_of


@dataclass(frozen=True, eq=False)
class FactorPair:
    """Product and all that reads it, which are products by matrices again; `rank` is the size of the dimension between."""

    first: Matrix
    seconds: tuple[Matrix, ...]
    rank: int
    sizes: tuple[int, ...]  #: of the input, and of each result

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of all factors, the first one's first."""
        return (self.first.weight, *(second.weight for second in self.seconds))

    @property
    def is_even(self) -> bool:
        """Whether the factors have at least as many parameters as the matrices that they stand for."""
        size, *results = self.sizes
        return self.rank * (size + sum(results)) >= size * sum(results)


def pairs(program: Program) -> list[FactorPair]:
    """Return products whose values only products by matrices of their own read, in graph order; each matrix is in one pair at most."""
    found = matrices(program, analyze(program).flow)
    made: list[FactorPair] = []
    taken: set[str] = set()
    for first in found.values():
        seconds = [found[user.name] for user in first.node.users if user.name in found]
        fits = len(seconds) == len(first.node.users) and first.node.name not in taken
        if fits and all(_follows(first, second) for second in seconds):
            made.append(_pair(program, first, seconds))
            taken |= {second.node.name for second in seconds}
    return made


def _pair(program: Program, first: Matrix, seconds: list[Matrix]) -> FactorPair:
    tensors = program.tensors()
    rank, size = first.read(tensors[first.weight]).shape
    results = (len(second.read(tensors[second.weight])) for second in seconds)
    return FactorPair(first, tuple(seconds), rank, (size, *results))


def _follows(first: Matrix, second: Matrix) -> bool:
    """Return whether the second reads the first's whole result, each position separately, and can take a bias that the first has."""
    if second.source is not first.node or (first.bias and not (second.bias or second.form.bias)):
        return False
    if not first.form.spatial and not second.form.spatial:
        return True
    return packet_of(first.node.target) is packet_of(second.node.target) and _is_point(second)


def _is_point(matrix: Matrix) -> bool:
    """Return whether a convolution has a kernel of one point, without stride or padding."""
    kernel = bind(matrix.node)[matrix.form.weight].value.meta["val"].shape[2:]
    stride, padding, _ = geometry(matrix.node, kernel)
    return all(size == 1 for size in (*kernel, *stride)) and not any(padding)


def merge_factors(
    program: Program, choose: Callable[[FactorPair], bool] = lambda pair: pair.is_even
) -> Program:
    """Replace the chosen pairs (by default those that save nothing) by one product each; the result is equal but for rounding."""
    chosen = [pair for pair in pairs(program) if choose(pair)]
    if not chosen:
        return program
    graph = rebuild(program, copy_graph(program), {}).graph_module
    nodes = dict(zip(program.graph.nodes, graph.graph.nodes, strict=True))
    tensors = dict(program.tensors())
    for pair in chosen:
        for second in pair.seconds:
            _join(graph, nodes, pair.first, second, tensors)
    remove_dead(graph)
    return rebuild(program.replace(graph_module=graph), graph.graph, tensors).replace(labels={})


def _join(
    graph: fx.GraphModule,
    nodes: Mapping[fx.Node, fx.Node],
    first: Matrix,
    second: Matrix,
    tensors: dict[str, Tensor],
) -> None:
    """Replace the second product by one that computes both, in its own place and under its own name."""
    outer = second.read(tensors[second.weight].detach()).double()
    inner = first.read(tensors[first.weight].detach()).double()
    values = {second.form.weight: _stored(first, second, outer @ inner, tensors)}
    bias = tensors[second.bias].detach().double() if second.bias else None
    if first.bias:
        through = outer @ tensors[first.bias].detach().double()
        bias = through if bias is None else bias + through
    if first.bias and bias is not None:
        like = tensors[second.bias or first.bias]
        values[second.form.bias] = nn.Parameter(bias.to(like.dtype), like.requires_grad)
    here = nodes[second.node]
    given = {name: argument.value for name, argument in bind(here).items()}
    if second.form.spatial:
        own = {name: argument.value for name, argument in bind(nodes[first.node]).items()}
        given = {**own, second.form.bias: given[second.form.bias]}
    given[second.form.input] = nodes[first.source]
    with graph.graph.inserting_before(here):
        for operand, value in values.items():
            name = _name(first, second, operand, tensors)
            tensors[name] = value
            given[operand] = add_parameter(graph, name, value)
    here.args, here.kwargs = unbind(here, given)


def _stored(first: Matrix, second: Matrix, weight: Tensor, tensors: Mapping[str, Tensor]) -> nn.Parameter:
    """Return the product of both matrices as the second's operator takes it; a kernel of one point gets the first's size."""
    like = tensors[second.weight]
    plain = weight.t() if second.form.turned else weight
    if like.ndim > 2:
        plain = plain.reshape(len(plain), *tensors[first.weight].shape[1:])
    return nn.Parameter(plain.to(like.dtype).contiguous(), like.requires_grad)


def _name(first: Matrix, second: Matrix, operand: str, taken: Mapping[str, Tensor]) -> str:
    """Return the name of the matrix that `factorize` replaced, else one beside the second's."""
    stem = second.weight
    for ending in FACTORS:
        stem = stem.removesuffix(ending)
    if operand == second.form.weight:
        wanted = stem if stem != second.weight and stem not in taken else f"{second.weight}_merged"
    else:
        wanted = f"{second.bias or stem}_merged"
    return sibling(wanted, wanted.rpartition(".")[2], taken)
