"""Graph layout: boxes in rows from top to bottom, and paths for the lines between them (a layered drawing, Sugiyama and others, 1981)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

GAP, DROP, MARGIN = 18, 52, 8
"""Space between boxes of a row, between rows, and around everything."""
SWEEPS = 8
THIN = 10
"""Width of a line that passes by a row."""

_Size = tuple[float, float]
Spot = tuple[float, float]


@dataclass
class Layout:
    """The upper left corner of each box, the points of each edge, from box to box, and the size of the whole."""

    corners: dict[str, Spot] = field(default_factory=dict)
    paths: dict[tuple[str, str], list[Spot]] = field(default_factory=dict)
    size: _Size = (0.0, 0.0)


def place_nodes(
    sizes: Mapping[str, _Size], edges: Iterable[tuple[str, str]], sinks: Iterable[str] = ()
) -> Layout:
    """Lay out boxes of these sizes, in the order given, and edges (no cycles); `sinks` stand in the last row."""
    edges = list(dict.fromkeys(edges))
    rows, chains = _rows(sizes, edges, frozenset(sinks))
    widths = {name: sizes[name][0] if name in sizes else THIN for row in rows for name in row}
    links = [pair for chain in chains.values() for pair in pairwise(chain)]
    rows = _ordered(rows, links)
    centres = _centres(rows, widths, links)
    return _drawn(rows, centres, sizes, chains)


_Row = list[str]


def _rows(
    sizes: Mapping[str, _Size], edges: Sequence[tuple[str, str]], sinks: frozenset[str]
) -> tuple[list[_Row], dict[tuple[str, str], _Row]]:
    """Return (rows, chains): boxes by row, each below its predecessors, and for each edge its ends with a stand-in in every row between."""
    graph = nx.DiGraph(edges)
    graph.add_nodes_from(sizes)
    level = {name: i for i, row in enumerate(nx.topological_generations(graph)) for name in row}
    for name in reversed(list(nx.topological_sort(graph))):
        below = [level[after] for after in graph.successors(name)]
        if below and not graph.in_degree(name):
            level[name] = min(below) - 1
    last = max(level.values(), default=0)
    level |= {name: last for name in sinks if not graph.out_degree(name)}
    rows: list[_Row] = [[] for _ in range(last + 1)]
    for name in sizes:
        rows[level[name]].append(name)
    chains: dict[tuple[str, str], _Row] = {}
    for start, end in edges:
        between = [f"{start} > {end} {i}" for i in range(level[start] + 1, level[end])]
        for i, stand_in in enumerate(between, level[start] + 1):
            rows[i].append(stand_in)
        chains[start, end] = [start, *between, end]
    return rows, chains


def _ordered(rows: list[_Row], links: Sequence[tuple[str, str]]) -> list[_Row]:
    """Sort each row by the mean place of its neighbours in the row above, then below, in turns, so that fewer lines cross."""
    above, below = _neighbours(links)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for i in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            beside, near = (rows[i - 1], above) if down else (rows[i + 1], below)
            place_ = {name: k / max(1, len(beside) - 1) for k, name in enumerate(beside)}
            own = {name: k / max(1, len(rows[i]) - 1) for k, name in enumerate(rows[i])}
            rows[i].sort(
                key=lambda name: _mean([place_[n] for n in near.get(name, ()) if n in place_], own[name])
            )
    return rows


def _neighbours(links: Sequence[tuple[str, str]]) -> tuple[dict[str, _Row], dict[str, _Row]]:
    above: dict[str, _Row] = {}
    below: dict[str, _Row] = {}
    for start, end in links:
        above.setdefault(end, []).append(start)
        below.setdefault(start, []).append(end)
    return above, below


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _centres(
    rows: Sequence[_Row], widths: Mapping[str, float], links: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Return the centre of each box: near the mean of its neighbours', without touching others."""
    above, below = _neighbours(links)
    centres: dict[str, float] = {}
    for row in rows:
        _packed(row, dict.fromkeys(row, 0.0), widths, centres)
    for sweep in range(2 * SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            near = above if down else below
            wanted = {name: _mean([centres[n] for n in near.get(name, ())], centres[name]) for name in row}
            _packed(row, wanted, widths, centres)
    return centres


def _packed(
    row: Sequence[str], wanted: Mapping[str, float], widths: Mapping[str, float], centres: dict[str, float]
) -> None:
    """Set centres as close to the wanted ones as the order and the widths of a row allow: the mean of packing from either side."""
    right: dict[str, float] = {}
    edge = float("-inf")
    for name in row:
        right[name] = max(wanted[name], edge + widths[name] / 2)
        edge = right[name] + widths[name] / 2 + GAP
    edge = float("inf")
    for name in reversed(row):
        left = min(wanted[name], edge - widths[name] / 2)
        edge = left - widths[name] / 2 - GAP
        centres[name] = (left + right[name]) / 2


def _drawn(
    rows: Sequence[_Row],
    centres: Mapping[str, float],
    sizes: Mapping[str, _Size],
    chains: Mapping[tuple[str, str], _Row],
) -> Layout:
    """Return corners and paths, shifted so that everything lies within the margins."""
    reach = [(centres[n], sizes.get(n, (THIN, 0))[0] / 2) for row in rows for n in row] or [(0.0, 0.0)]
    left = min(centre - half for centre, half in reach) - MARGIN
    right = max(centre + half for centre, half in reach) + MARGIN
    bands, y = dict[str, Spot](), float(MARGIN)
    for row in rows:
        height = max((sizes[name][1] for name in row if name in sizes), default=0.0)
        bands |= dict.fromkeys(row, (y, y + height))
        y += height + DROP
    corners = {name: (centres[name] - left - width / 2, bands[name][0]) for name, (width, _) in sizes.items()}
    found = Layout(corners, {}, (right - left, y - DROP + MARGIN))
    for key, (start, end) in _ports(centres, sizes, chains).items():
        first, *between, last = chains[key]
        # So that no line runs behind a taller neighbour.
        floor = dict.fromkeys((bands[first][0] + sizes[first][1], bands[first][1]))
        middle = [(centres[name] - left, at) for name in between for at in bands[name]]
        found.paths[key] = [*((start - left, at) for at in floor), *middle, (end - left, bands[last][0])]
    return found


def _ports(
    centres: Mapping[str, float], sizes: Mapping[str, _Size], chains: Mapping[tuple[str, str], _Row]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return where each edge leaves its box below and enters the other above: side by side, in the order of their other ends."""
    found: dict[tuple[str, str], list[float]] = {key: [0.0, 0.0] for key in chains}
    for end in (0, 1):
        by_box: dict[str, list[tuple[str, str]]] = {}
        for key in chains:
            by_box.setdefault(key[end], []).append(key)
        for name, keys in by_box.items():
            keys.sort(key=lambda key: centres[chains[key][1 if end == 0 else -2]])
            step = min(30.0, (sizes[name][0] - 24) / max(1, len(keys) - 1))
            for i, key in enumerate(keys):
                found[key][end] = centres[name] + step * (i - (len(keys) - 1) / 2)
    return {key: (start, end) for key, (start, end) in found.items()}
