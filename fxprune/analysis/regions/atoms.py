"""Atoms: the smallest parts of a stream whose value has the dims of the value before, and the rows in which they follow one another.

    x ─┬─ norm ─ attention ─ add ─┬─ norm ─ ffn ─ add ── …       cut points x, add, add: two residual branches, one layer
       └──────────────────────────┘

An atom leads from the nearest earlier value of the same dims that is passed on to the exit. All that lies between is needed by the exit
alone; the entry may have other readers (a skip, a list of all layers' outputs, another branch).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from torch import fx

from fxprune.analysis.regions.streams import Streams
from fxprune.rules import is_written


@dataclass(frozen=True)
class Atom:
    """Part of a stream between two neighbouring cut points, (entry, exit]; `nodes` are those that only its exit needs.

    `residual` where the exit is the entry's value with something added that is computed from it. `tail` are the atoms without parameters
    that follow it (an activation, a dropout).
    """

    entry: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    parameters: tuple[str, ...]
    signature: str
    residual: bool
    tail: tuple[Atom, ...] = ()

    @property
    def end(self) -> fx.Node:
        """The last cut point, the tail included."""
        return self.tail[-1].exit if self.tail else self.exit


def find_atoms(streams: Streams) -> dict[fx.Node, Atom]:
    """Return the atom that ends at each node, where there is one."""
    found = {node: _atom(streams, node) for node in streams.calls if streams.key(node) is not None}
    return {node: atom for node, atom in found.items() if atom}


#: values that the walk from an exit looks at: an entry farther away would be that of a row, not of an atom
NEAREST = 32


def _atom(streams: Streams, way_out: fx.Node) -> Atom | None:
    """Return the atom from the nearest entry that leaves nothing behind that others read.

    It is the only entry, or has a stream of its own beside the others (a decoder beside the encoder's states), if none of them is one.
    """
    walk, latest = Walk(streams, way_out), len(streams.order)
    found: Atom | None = None
    for entry, added in islice(walk, NEAREST):
        if streams.order[entry] <= latest:
            dead = streams.dead([way_out], [entry])
            if is_written(entry) or _is_read_elsewhere(streams, entry, dead):
                continue
            other = _other_entry(streams, entry, dead)
            if other is None:
                return (
                    _made(streams, entry, dead, added)
                    if not found or streams.order[entry] == latest
                    else found
                )
            found = found or _beside_others(streams, _made(streams, entry, dead, added))
            latest = streams.order[other]
        walk.go_on(entry, added)
    return found


def _made(streams: Streams, entry: fx.Node, dead: dict[fx.Node, None], added: bool) -> Atom:
    nodes = tuple(dead)
    residual = added and streams.reads_weights_within([entry], nodes)
    return Atom(entry, nodes[-1], nodes, streams.weights(nodes), streams.signature(nodes, [entry]), residual)


def _beside_others(streams: Streams, atom: Atom) -> Atom | None:
    """Return a residual atom whose entry comes from a stream that no other value that it reads comes from."""
    left = streams.origins[atom.entry]
    for node in streams.frontier(atom.nodes):
        left &= ~streams.origins[node] if node is not atom.entry else -1
    return atom if atom.residual and left else None


class Walk:
    """Way back from a value, by operators that pass it on, over the earlier values of its dims, the latest first.

    Yields (value, whether something of the same dims was added on the way); what lies behind a value is walked after `go_on`.
    """

    def __init__(self, streams: Streams, start: fx.Node) -> None:
        self.streams, self.key = streams, streams.key(start)
        self.added: dict[fx.Node, bool] = {}
        self.waiting: list[tuple[int, fx.Node]] = []
        self.go_on(start, added=False)

    def go_on(self, node: fx.Node, added: bool) -> None:
        """Walk behind a node."""
        added = added or self.streams.is_sum(node)
        for source in self.streams.passed(node):
            if source not in self.added:
                heapq.heappush(self.waiting, (-self.streams.order[source], source))
            self.added[source] = self.added.get(source, False) or added

    def __iter__(self) -> Iterator[tuple[fx.Node, bool]]:
        while self.waiting:
            _, node = heapq.heappop(self.waiting)
            if self.streams.key(node) == self.key:
                yield node, self.added[node]
            elif self.streams.is_arranged(node, self.key):
                self.go_on(node, self.added[node])


def _is_read_elsewhere(streams: Streams, entry: fx.Node, dead: dict[fx.Node, None]) -> bool:
    """Return whether a value between entry and exit stays needed."""
    first = streams.order[entry]
    others = (node for node in streams.frontier(dead) if streams.order[node] > first)
    return any(streams.descends(node, entry) for node in others)


def _other_entry(streams: Streams, entry: fx.Node, dead: dict[fx.Node, None]) -> fx.Node | None:
    """Return the latest value of the entry's streams that the nodes read beside it."""
    bits = streams.origins[entry]
    others = (node for node in streams.frontier(dead) if node is not entry and streams.origins[node] & bits)
    return max(others, key=streams.order.__getitem__, default=None)


def find_rows(atoms: dict[fx.Node, Atom]) -> list[list[Atom]]:
    """Return rows of atoms that follow one another; those without parameters are the tail of the one before.

    Where several atoms begin at one value, the row goes on with the one that most residuals follow.
    """
    main = _main(atoms)
    return [
        list(_with_tails(_row(atom, main)))
        for atom in atoms.values()
        if atom.entry not in atoms or main[atom.entry] is not atom
    ]


def _main(atoms: dict[fx.Node, Atom]) -> dict[fx.Node, Atom]:
    """Return for each entry the atom with which its row goes on."""
    heights: dict[fx.Node, tuple[int, int]] = {}
    main: dict[fx.Node, Atom] = {}
    for atom in reversed(atoms.values()):
        residuals, count = heights.get(atom.exit, (0, 0))
        height = (residuals + atom.residual, count + 1)
        if height >= heights.get(atom.entry, (0, 0)):
            heights[atom.entry], main[atom.entry] = height, atom
    return main


def _row(atom: Atom | None, main: dict[fx.Node, Atom]) -> Iterator[Atom]:
    while atom:
        yield atom
        atom = main.get(atom.exit)


def _with_tails(row: Iterable[Atom]) -> Iterator[Atom]:
    last: Atom | None = None
    for atom in row:
        if last and not atom.parameters and last.end is atom.entry:
            last = replace(last, tail=(*last.tail, atom))
            continue
        if last and last.parameters:
            yield last
        last = atom
    if last and last.parameters:
        yield last
