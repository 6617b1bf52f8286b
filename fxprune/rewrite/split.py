"""Row-block split: replace a matrix whose rows fall into blocks that read different columns by a few smaller, dense products.

Matrices that read one value are split together, so that blocks with the same columns (of queries, keys and values, say) share one product.
Each product gathers its columns; its result is cut into pieces, and each matrix's pieces are joined again in their order. It only pays
for few, large blocks: `fxprune.search.alternatives.cheaper_splits` measures both.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from fxprune.analysis import Matrix, analyze, matrices
from fxprune.ir import Program, add_parameter, attribute, call, copy_graph, rebuild
from fxprune.ir.edit import add_buffer
from fxprune.ir.program import sibling
from fxprune.rewrite.dead_code import remove_dead

aten = torch.ops.aten

MOST_PRODUCTS = 32
"""More products than this in the place of one are never faster: such matrices stay dense, unmeasured."""


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a weight that read the same columns."""

    weight: str
    start: int
    stop: int


@dataclass(frozen=True)
class RowBlockSplit:
    """Matrices that read one value (`nodes`), and their rows by the columns that they read."""

    source: str
    nodes: tuple[str, ...]
    groups: Mapping[tuple[int, ...], tuple[Piece, ...]]

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that are split."""
        return tuple(dict.fromkeys(piece.weight for pieces in self.groups.values() for piece in pieces))


def splits(program: Program, takes: Callable[[str], bool] = lambda weight: True) -> list[RowBlockSplit]:
    """Return the splits that the zeros of a program's weights allow, in graph order; a matrix without a zero column in a block has none.

    `takes` says which weights may be split.
    """
    by_source: dict[str, list[Matrix]] = {}
    for matrix in matrices(program, analyze(program).flow).values():
        if not matrix.form.spatial and takes(matrix.weight):
            by_source.setdefault(matrix.source.name, []).append(matrix)
    found = [_split(program, source, own) for source, own in by_source.items()]
    return [each for each in found if each is not None]


def _split(program: Program, source: str, own: Sequence[Matrix]) -> RowBlockSplit | None:
    groups: dict[tuple[int, ...], list[Piece]] = {}
    there = {m.node.name: m.read(attribute(program.graph_module, m.weight).detach()) != 0 for m in own}
    sparse = [m for m in own if not bool(_support(there[m.node.name]).all())]
    for matrix in sparse:
        for columns, piece in _pieces(matrix, _support(there[matrix.node.name])):
            groups.setdefault(columns, []).append(piece)
    if not sparse or not 1 <= len(groups) <= MOST_PRODUCTS:
        return None
    kept = {columns: tuple(pieces) for columns, pieces in groups.items()}
    return RowBlockSplit(source, tuple(matrix.node.name for matrix in sparse), kept)


def _support(there: Tensor) -> Tensor:
    """Return which columns each row reads; rows that read none are left to the pass `empty`, and read all here."""
    return there | ~there.any(1, keepdim=True)


def _pieces(matrix: Matrix, there: Tensor) -> list[tuple[tuple[int, ...], Piece]]:
    """Return the runs of rows that read the same columns, with these columns."""
    new = (there[1:] != there[:-1]).any(1).nonzero().flatten() + 1
    edges = [0, *new.tolist(), len(there)]
    pieces = [Piece(matrix.weight, start, stop) for start, stop in pairwise(edges)]
    return [(tuple(there[piece.start].nonzero().flatten().tolist()), piece) for piece in pieces]


def split(program: Program, chosen: Sequence[RowBlockSplit]) -> Program:
    """Apply splits to a program; the result is equal but for the order of sums."""
    graph = rebuild(program, copy_graph(program), {}).graph_module
    nodes = dict(zip(program.graph.nodes, graph.graph.nodes, strict=True))
    found = matrices(program, analyze(program).flow)
    writer = _Writer(program, graph, nodes)
    for each in chosen:
        writer.write(each, [found[name] for name in each.nodes])
    remove_dead(graph)
    slim = rebuild(program.replace(graph_module=graph), graph.graph, writer.tensors)
    return slim.replace(labels={})


class _Writer:
    """Writer of splits into one graph."""

    def __init__(self, program: Program, graph: fx.GraphModule, nodes: Mapping[fx.Node, fx.Node]) -> None:
        self.program, self.graph, self.nodes = program, graph, nodes
        self.tensors: dict[str, Tensor] = {}

    def write(self, found: RowBlockSplit, own: Sequence[Matrix]) -> None:
        """Add a product for each group of rows, and join the matrices' results from their pieces."""
        by_weight = {matrix.weight: matrix for matrix in own}
        first = self.nodes[own[0].node]
        results: dict[Piece, fx.Node] = {}
        with self.graph.graph.inserting_before(first):
            source = self.nodes[own[0].source]
            for number, (columns, pieces) in enumerate(found.groups.items()):
                results |= self._product(source, columns, [(by_weight[p.weight], p) for p in pieces], number)
            for matrix in own:
                parts = sorted((p for p in results if p.weight == matrix.weight), key=lambda p: p.start)
                joined = [results[piece] for piece in parts]
                whole = joined[0] if len(joined) == 1 else call(self.graph, aten.cat.default, (joined, -1))
                whole.meta |= {key: value for key, value in matrix.node.meta.items() if key != "val"}
                self.nodes[matrix.node].replace_all_uses_with(whole)

    def _product(
        self, source: fx.Node, columns: Sequence[int], pieces: Sequence[tuple[Matrix, Piece]], number: int
    ) -> dict[Piece, fx.Node]:
        """Add one dense product for all pieces that read these columns, and return the part of its result for each piece."""
        taken = {path.rpartition(".")[0] for path in self.tensors}
        name = sibling(pieces[0][1].weight, f"split{number}", taken)
        size = int(source.meta["val"].shape[-1])
        if len(columns) < size:
            index = add_buffer(self.graph, f"{name}.columns", torch.tensor(columns))
            self.tensors[str(index.target)] = attribute(self.graph, str(index.target))
            source = call(self.graph, aten.index_select.default, (source, -1, index))
        weight, bias = self._joined(columns, pieces)
        learned = any(self.program.tensors()[matrix.weight].requires_grad for matrix, _ in pieces)
        arguments = [self._parameter(f"{name}.weight", weight, learned)]
        arguments += [self._parameter(f"{name}.bias", bias, learned)] if bias is not None else []
        result = call(self.graph, aten.linear.default, (source, *arguments))
        if len(pieces) == 1:
            return {pieces[0][1]: result}
        sizes = [piece.stop - piece.start for _, piece in pieces]
        cut = call(self.graph, aten.split_with_sizes.default, (result, sizes, -1))
        return {piece: call(self.graph, operator.getitem, (cut, i)) for i, (_, piece) in enumerate(pieces)}

    def _joined(
        self, columns: Sequence[int], pieces: Sequence[tuple[Matrix, Piece]]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the rows of all pieces, their columns only, and their biases (None where no matrix has one)."""
        tensors = self.program.tensors()
        rows, biases = [], []
        for matrix, piece in pieces:
            weight = matrix.read(tensors[matrix.weight].detach())[piece.start : piece.stop]
            rows.append(weight[:, list(columns)])
            bias = tensors[matrix.bias].detach()[piece.start : piece.stop] if matrix.bias else None
            biases.append(weight.new_zeros(len(weight)) if bias is None else bias)
        has_bias = any(matrix.bias for matrix, _ in pieces)
        return torch.cat(rows), torch.cat(biases) if has_bias else None

    def _parameter(self, name: str, value: Tensor, learned: bool) -> fx.Node:
        self.tensors[name] = nn.Parameter(value.contiguous(), learned)
        return add_parameter(self.graph, name, self.tensors[name])
