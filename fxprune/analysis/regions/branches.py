"""Branches: the summands of sums in which something else is passed on, in whatever order they are added, and gated residuals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import or_

import torch
from torch import fx

from fxprune.analysis.regions.atoms import NEAREST, Atom, Walk
from fxprune.analysis.regions.streams import Streams
from fxprune.ir import bind
from fxprune.rules import is_written

aten = torch.ops.aten

_SUMS = (aten.add.Tensor, aten.add_.Tensor)
_DIFFERENCES = (aten.sub.Tensor, aten.sub_.Tensor)


@dataclass(frozen=True)
class Branch:
    """Residual branch: readers of the exit read the entry instead; of a summand (`addend`), the entry is the other operand of the sum."""

    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    addend: fx.Node | None = None


def find_branches(streams: Streams, atoms: Mapping[fx.Node, Atom]) -> list[Branch]:
    """Return the branches of each sum, and the residual atoms that end otherwise (gated ones, those of a scaled stream)."""
    found: list[Branch] = []
    for node in streams.calls:
        atom = atoms.get(node)
        if not _is_sum(streams, node):
            is_sum = _is_sum(streams, streams.arranged(node))
            ends = atom and atom.residual and not is_sum and not _goes_on(node, atoms)
            found += [Branch(atom.entry, node, atom.nodes)] if atom and ends else []
        elif not _is_term(streams, node):
            terms = list(_terms(streams, node))
            scaled = atom is not None and atom.residual and _scales(streams, atom, terms)
            found += [Branch(atom.entry, node, atom.nodes)] if atom and scaled else _summands(streams, terms)
    return found


def _goes_on(node: fx.Node, atoms: Mapping[fx.Node, Atom]) -> bool:
    """Return whether a value is only arranged anew into one at which another residual atom ends."""
    after = atoms.get(next(iter(node.users))) if len(node.users) == 1 else None
    return after is not None and after.residual and after.exit.all_input_nodes[0] is node


def _scales(streams: Streams, atom: Atom, terms: Iterable[_Term]) -> bool:
    """Return whether a term is the atom's entry times something: without what is added, the entry remains, not that."""
    trunks = [term.value for term in terms if not term.parameters and term.value in atom.nodes]
    return any(entry is atom.entry for trunk in trunks for entry in _factors(streams, trunk))


def _factors(streams: Streams, value: fx.Node) -> Iterator[fx.Node]:
    """Yield the values of its dims that a value is made of by operators that pass them on and add nothing."""
    walk = Walk(streams, value)
    for node, added in islice(walk, NEAREST):
        if not added:
            yield node
            walk.go_on(node, added)


@dataclass(frozen=True)
class _Term:
    """Operand `value` of the sum `node`, beside `rest`: what only it needs, and whether the rest can stay without it."""

    node: fx.Node
    value: fx.Node
    rest: fx.Node
    nodes: tuple[fx.Node, ...]
    parameters: tuple[str, ...]
    can_go: bool


def _summands(streams: Streams, terms: Sequence[_Term]) -> Iterator[Branch]:
    """Yield the terms that weights make, where there is one that they don't make: the stream to which they are added."""
    trunks = [term.value for term in terms if not term.parameters]
    stream = reduce(or_, (streams.origins.get(value, 0) for value in trunks), 0)
    constants = {value for value in trunks if value not in streams.flow.varies}
    for term in terms:
        own = [node for node in term.nodes if node is not term.node]
        reads = any(streams.origins[node] & stream for node in streams.frontier(own))
        reads = reads or (bool(constants) and not constants.isdisjoint(streams.constants(own)))
        if term.parameters and term.can_go and reads:
            yield Branch(term.rest, term.node, term.nodes, term.value)


def _terms(streams: Streams, node: fx.Node) -> Iterator[_Term]:
    """Yield the terms of a sum, those of sums that only it reads among them."""
    for value, rest, can_go in _parts(node):
        varies = value in streams.flow.varies
        if can_go and varies and _is_sum(streams, value) and len(value.users) == 1:
            yield from _terms(streams, value)
        else:
            nodes = tuple(streams.dead([node], [rest]))
            parameters = streams.weights(nodes) if varies and nodes[:-1] else ()
            is_alike = streams.key(rest) == streams.key(node) is not None
            can_stay = can_go and varies and is_alike and not is_written(rest)
            yield _Term(node, value, rest, nodes, parameters, can_stay)


def _parts(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node, bool]]:
    """Yield each operand of a sum, the other one, and whether the other one is the sum's value without it."""
    bound = bind(node)
    first, second = bound["self"].value, bound["other"].value
    scaled = bound["alpha"].value != 1 or node.target in _DIFFERENCES
    yield from ((first, second, not scaled), (second, first, True))


def _is_term(streams: Streams, node: fx.Node) -> bool:
    """Return whether only another sum reads a sum, as one of its terms."""
    user = next(iter(node.users)) if len(node.users) == 1 else node
    return _is_sum(streams, user) and any(can_go and value is node for value, _, can_go in _parts(user))


def _is_sum(streams: Streams, node: fx.Node) -> bool:
    """Return whether a node adds or subtracts two values of its size (queries that are learned may not depend on inputs)."""
    if node.target not in (*_SUMS, *_DIFFERENCES):
        return False
    read = node.all_input_nodes
    return len(read) == 2 and all(streams.is_as_large(one, node) for one in read)
