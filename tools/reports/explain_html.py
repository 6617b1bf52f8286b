"""`fxprune explain --html`: a page with the network, its axes coloured and lettered by group, and the refusals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fxprune.analysis import Analysis, Axis, Region
from fxprune.tools.reports import report
from fxprune.tools.reports.graph_layout import MARGIN, place_nodes
from fxprune.tools.reports.layer_bars import WORDS
from fxprune.tools.reports.network_diagram import AxisGroup, Box, Chip, Edge, Network, Section, network
from fxprune.tools.reports.templates import Refused, Tile, refused, render

CHAR, BOLD = 6.7, 7.3
"""Width of a character: of 11 px in a chip, of 12 px in a title."""
LINE, _HEAD, PAD = 20, 24, 9
COLOURS, DASHES = 7, 4
"""Groups cycle through so many colours and so many dashes, which have no common divisor; each has its letter, too."""
MEANINGS = {
    "zeroed": "removal equals zeroing what reads it",
    "never chosen": "removal equals never choosing the unit; the others share what was its",
    "never chosen and zeroed": "removal equals never choosing the unit (the others share what was its) and zeroing what reads it",
}
"""What `Axis.meaning` says, as a sentence."""
OPEN = 16
"""Largest number of groups whose members are shown unfolded."""


@dataclass(frozen=True)
class DrawnChip:
    """A chip in a drawing, from `x` on."""

    x: float
    width: float
    chip: Chip


@dataclass(frozen=True)
class DrawnBox:
    """A box with its corner, its size, and the name and the chips of each line."""

    box: Box
    corner: tuple[float, float]
    size: tuple[float, float]
    lines: tuple[tuple[str, tuple[DrawnChip, ...]], ...]


@dataclass(frozen=True)
class DrawnEdge:
    """An edge: one path for each group that it carries (one without a letter where it carries none), and words with their places."""

    paths: tuple[tuple[str, str], ...]
    words: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Figure:
    """A drawn section."""

    section: Section
    size: tuple[float, float]
    boxes: tuple[DrawnBox, ...]
    edges: tuple[DrawnEdge, ...]
    summary: str


def render_explain(name: str, analysis: Analysis) -> str:
    """Return the whole page, as HTML."""
    found = refused(report.refusals(analysis.refusals))
    drawn = network(analysis, [each.why for each in found])
    return render(
        "explain.html",
        model=name,
        tiles=_tiles(analysis, drawn, found),
        groups=drawn.groups,
        words=WORDS,
        meanings=MEANINGS,
        figures=[figure(section) for section in drawn.sections],
        place={group.letter: group.place for group in drawn.groups},
        colours=COLOURS,
        dashes=DASHES,
        opened=len(drawn.groups) <= OPEN,
        named=_named,
        regions=_regions(analysis.regions),
        refused=found,
    )


def _tiles(analysis: Analysis, drawn: Network, found: Sequence[Refused]) -> list[Tile]:
    free = [region for region in analysis.regions if not region.why]
    counts = {unit: sum(region.unit == unit for region in free) for unit in ("layer", "branch")}
    exact = sum(axis.exact for axis in analysis.axes)
    return [
        Tile("Axes that can shrink", str(len(analysis.axes)), f"groups of axes that are alike: {len(drawn.groups)}; exact: {exact}"),
        Tile("Layers that can go", str(counts["layer"]), f"and residual branches: {counts['branch']}"),
        Tile("Reasons to stay whole", str(len(found)), f"dimensions of parameters that do: {len(analysis.refusals)}"),
    ]  # fmt: skip


def _named(group: AxisGroup) -> str:
    """Return the name of a group's axis, without its layer's name where it stands for several."""
    axis: Axis = group.axes[0]
    return axis.name if len(group.axes) == 1 else axis.name.removeprefix(group.layers[0]).strip(".")


def _regions(found: Sequence[Region]) -> list[tuple[str, str, list[str]]]:
    """Return (unit, why it can't go or nothing, names) of regions that share both."""
    rows: dict[tuple[str, str], list[str]] = {}
    for region in found:
        rows.setdefault((region.unit, region.why), []).append(region.name)
    return [(unit, why, names) for (unit, why), names in rows.items()]


def figure(section: Section) -> Figure:
    """Return the boxes and lines of a section, in their places; empty where the section is drawn elsewhere."""
    if section.drawn_as:
        return Figure(section, (0, 0), (), (), "")
    laid = {box.name: _lines(box) for box in section.boxes}
    sizes = {box.name: _size(box, laid[box.name]) for box in section.boxes}
    sinks = [box.name for box in section.boxes if box.kind in ("to", "output")]
    placed = place_nodes(sizes, [(edge.start, edge.end) for edge in section.edges], sinks)
    corners = {name: _rounded(corner) for name, corner in placed.corners.items()}
    boxes = tuple(DrawnBox(b, corners[b.name], sizes[b.name], laid[b.name]) for b in section.boxes)
    ends = sorted(section.edges, key=lambda edge: (edge.end, placed.paths[edge.start, edge.end][-1]))
    edges = tuple(_edge(edge, placed.paths[edge.start, edge.end], i % 2) for i, edge in enumerate(ends))
    words = max((x + CHAR * len(text) for edge in edges for x, _, text in edge.words), default=0.0)
    size = max(placed.size[0], words + MARGIN), placed.size[1]
    return Figure(section, _rounded(size), boxes, edges, _summary(section))


def _rounded(spot: tuple[float, float]) -> tuple[float, float]:
    return round(spot[0], 1), round(spot[1], 1)


def _lines(box: Box) -> tuple[tuple[str, tuple[DrawnChip, ...]], ...]:
    """Return the chips of each line, side by side behind the longest name."""
    start = PAD + max((len(name) for name, _ in box.lines), default=0) * CHAR + 8
    return tuple((name, tuple(_chips(dims, start))) for name, dims in box.lines)


def _chips(dims: Sequence[tuple[Chip, ...]], x: float) -> list[DrawnChip]:
    found: list[DrawnChip] = []
    for chips in dims:
        for chip in chips:
            joint = not (chip.text[0].isdigit() or chip.group)
            width = len(chip.text) * CHAR + (1 if joint else 10)
            found.append(DrawnChip(round(x, 1), round(width, 1), chip))
            x += width + (1 if joint else 2)
        x += 7
    return found


def _size(box: Box, lines: Sequence[tuple[str, Sequence[DrawnChip]]]) -> tuple[float, float]:
    operator = "" if box.operator == box.title else box.operator
    head = len(box.title) * BOLD + (len(operator) * CHAR + 10 if operator else 0)
    widest = max((chips[-1].x + chips[-1].width - PAD for _, chips in lines if chips), default=0.0)
    return round(max(head, widest) + 2 * PAD, 1), _HEAD + LINE * len(lines) + (4 if lines else 0)


def _edge(edge: Edge, points: Sequence[tuple[float, float]], higher: int) -> DrawnEdge:
    """Return an edge with one path per group, side by side; letters at its start, operators on the value at its end.

    Words of neighbours stand at different heights.
    """
    groups = edge.groups or ("",)
    paths = [(group, _path(points, 4.5 * (i - (len(groups) - 1) / 2))) for i, group in enumerate(groups)]
    through = edge.through if len(edge.through) < 4 else (*edge.through[:2], "…", edge.through[-1])
    beside, (start, end) = 6 + 2.3 * (len(groups) - 1), (points[0], points[-1])
    letters = [(*_rounded((start[0] + beside, start[1] + 13)), " ".join(edge.groups))] if edge.groups else []
    done = [(*_rounded((end[0] + beside, end[1] - 8 - 13 * higher)), ", ".join(through))] if through else []
    return DrawnEdge(tuple(paths), (*letters, *done))


def _path(points: Sequence[tuple[float, float]], beside: float) -> str:
    """Return an SVG path of curves that leave and arrive vertically."""
    moved = [(round(x + beside, 1), round(y, 1)) for x, y in points]
    text = f"M{moved[0][0]:g} {moved[0][1]:g}"
    for (x, y), (to_x, to_y) in pairwise(moved):
        half = round((y + to_y) / 2, 1)
        text += f"V{to_y:g}" if x == to_x else f"C{x:g} {half:g} {to_x:g} {half:g} {to_x:g} {to_y:g}"
    return text


def _summary(section: Section) -> str:
    """Return the drawing in words: its boxes in order, and what each reads."""
    titles: Mapping[str, str] = {box.name: box.title for box in section.boxes}
    read: dict[str, list[str]] = {}
    for edge in section.edges:
        read.setdefault(edge.end, []).append(titles[edge.start])
    told = [f"{box.title} reads {', '.join(read[box.name])}" for box in section.boxes if box.name in read]
    return f"{section.title}: {'; '.join(told)}."
