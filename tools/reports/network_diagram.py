"""Network diagram: boxes for operators that read weights or join values, and lines, in sections, with the axes of each dimension.

Layers that are alike (the same boxes, the same axes in the same places, names apart) share the letters of their axes, and are drawn once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from fxprune.analysis import Analysis, Axis, Region, flat_dims
from fxprune.dims import Dim, find, is_pinned, leaves
from fxprune.dims.dim import pinned
from fxprune.ir import attribute, operands
from fxprune.tools.reports.inventory import layer_of, module_paths

_SHOWN = 7
"""About the largest number of atoms that a dimension shows."""


@dataclass(frozen=True)
class Chip:
    """An atom: its text, and the letter of its group or the number of its refusal's reason; a joint (×, +) has neither."""

    text: str
    group: str = ""
    reason: int = 0


@dataclass(frozen=True)
class AxisGroup:
    """Axes of one kind: one, or one in each of some layers that are alike."""

    letter: str
    place: int
    axes: tuple[Axis, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Box:
    """An operator that reads weights or joins values, an input or an output; `lines` are tensors with the chips of their dimensions."""

    name: str
    title: str
    operator: str
    kind: str
    lines: tuple[tuple[str, tuple[tuple[Chip, ...], ...]], ...] = ()
    layer: str = ""
    place: int = 0


@dataclass(frozen=True)
class Edge:
    """A value between two boxes: the letters of the groups that it carries, and the operators applied to it on the way."""

    start: str
    end: str
    groups: tuple[str, ...] = ()
    through: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the network: a layer (and the layers like it), or what lies between layers."""

    title: str
    layers: tuple[str, ...]
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    drawn_as: str = ""


@dataclass(frozen=True)
class Network:
    """Groups with letters, reasons with numbers (from 1), and sections in order."""

    groups: tuple[AxisGroup, ...]
    reasons: tuple[str, ...]
    sections: tuple[Section, ...]


def network(analysis: Analysis, reasons: Sequence[str]) -> Network:
    """Return the diagram of a program; `reasons` are those of its refusals, in the order in which they are numbered."""
    layers = [region for region in analysis.regions if region.unit == "layer" and not region.why]
    found = _groups(analysis, layers)
    words = _ChipWriter(found, {why: i for i, why in enumerate(reasons, 1)})
    graph = _Graph(analysis, words, layers)
    return Network(tuple(found), tuple(reasons), tuple(_sections(graph.boxes, graph.edges)))


def _groups(analysis: Analysis, layers: Sequence[Region]) -> list[AxisGroup]:
    """Return axes with letters, in graph order; axes in the same place of layers that are alike share one."""
    kinds = _layer_keys(analysis, layers)
    found: dict[Any, list[tuple[Axis, str]]] = {}
    for axis in analysis.axes:
        layer = layer_of(axis, layers)
        alike = (kinds[layer], _axis_key(axis, layer)) if layer else axis.name
        found.setdefault(alike, []).append((axis, layer))
    return [
        AxisGroup(letters(i), i, tuple(axis for axis, _ in both), tuple(layer for _, layer in both if layer))
        for i, both in enumerate(found.values())
    ]


def _layer_keys(analysis: Analysis, layers: Sequence[Region]) -> dict[str, Any]:
    """Return a key for each layer, equal for layers that are alike: its structure, and the properties of its axes, names apart."""
    own: dict[str, list[Any]] = {region.name: [] for region in layers}
    for axis in analysis.axes:
        layer = layer_of(axis, layers)
        if layer:
            own[layer].append(_axis_key(axis, layer))
    return {region.name: (region.signature, tuple(own[region.name])) for region in layers}


def _axis_key(axis: Axis, layer: str) -> Any:
    """Return the properties of an axis, with names relative to its layer; constants that lie elsewhere have none."""
    members = tuple((_seen(m.name, layer, m.learned), m.dim, m.notation, m.learned) for m in axis.members)
    learned = {member.name for member in axis.members if member.learned}
    readers = tuple(sorted(_seen(name, layer, name in learned) for name in axis.readers))
    what = (axis.role, axis.size, axis.meaning, axis.why_inexact, axis.least)
    return axis.name.removeprefix(layer), what, members, readers


def _seen(name: str, layer: str, learned: bool) -> str:
    return name.removeprefix(layer) if learned or name.startswith(f"{layer}.") else ""


def letters(place: int) -> str:
    """Return the letters of a place: A, B, … Z, AA, AB and so on."""
    text = ""
    place += 1
    while place:
        place, last = divmod(place - 1, 26)
        text = chr(ord("A") + last) + text
    return text


class _ChipWriter:
    """Conversion of dimensions to chips."""

    def __init__(self, found: Sequence[AxisGroup], reasons: Mapping[str, int]) -> None:
        self.letter = {find(axis.leaf): group.letter for group in found for axis in group.axes}
        self.reasons = reasons

    def chips(self, dim: Dim) -> tuple[Chip, ...]:
        """Return a dimension's atoms, with the joints between them; a long list ends with an ellipsis."""
        found = tuple(self._chips(dim))
        return found if len(found) < 2 * _SHOWN else (*found[: 2 * _SHOWN - 2], Chip("…"))

    def _chips(self, dim: Dim, inside: bool = False) -> Iterator[Chip]:
        dim = find(dim)
        if dim.kind == "atom":
            yield self._chip(dim)
            return
        yield from (Chip("("),) if inside else ()
        for i, part in enumerate(dim.parts):
            yield from (Chip("×" if dim.kind == "product" else "+"),) if i else ()
            yield from self._chips(part, inside=True)
        yield from (Chip(")"),) if inside else ()

    def _chip(self, leaf: Dim) -> Chip:
        if leaf in self.letter:
            return Chip(f"{self.letter[leaf]} {leaf.size}", self.letter[leaf])
        pin = pinned(leaf) if is_pinned(leaf) else None
        number = self.reasons.get(pin.why, 0) if pin and leaf.size > 1 else 0
        return Chip(f"{leaf.size} [{number}]" if number else str(leaf.size), "", number)

    def carried(self, dims: Any) -> tuple[str, ...]:
        """Return the letters of the groups that a value carries."""
        atoms = [find(leaf) for dim in flat_dims(dims) for leaf in leaves(dim)]
        return tuple(dict.fromkeys(self.letter[leaf] for leaf in atoms if leaf in self.letter))


@dataclass
class _Graph:
    """Boxes and edges of a graph; an operator on one value, without weights, is part of an edge."""

    analysis: Analysis
    words: _ChipWriter
    layers: Sequence[Region]
    boxes: list[Box] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.program, self.flow = self.analysis.program, self.analysis.flow
        self.layer = {node: region.name for region in self.layers for node in region.nodes}
        # The box that a value comes from, and the operators since.
        self.behind: dict[fx.Node, tuple[str, tuple[str, ...]]] = {}
        for node in self.program.graph.nodes:
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "output":
            for name, result in self.program.named_outputs().items():
                self._add(Box(f"output {name}", name, "output", "output"), [result])
        elif node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            self._begin(node, Box(node.name, node.name, "input", "input"))
        elif node.op == "call_function" and node in self.flow.varies and _is_value(node):
            self._call(node)

    def _call(self, node: fx.Node) -> None:
        values = [source for source in operands(node) if source in self.behind]
        read = self._tensors(node)
        learns = any(map(self._learned, read))
        origins = dict.fromkeys(self.behind[source][0] for source in values)
        if len(origins) == 1 and not learns:
            start, through = self.behind[values[0]]
            self.behind[node] = start, (*through, *_operator_label(node))
        elif values or learns:
            self._begin(node, self._box(node, read), values)

    def _begin(self, node: fx.Node, box: Box, values: Sequence[fx.Node] = ()) -> None:
        self._add(box, values)
        self.behind[node] = box.name, ()

    def _add(self, box: Box, values: Sequence[fx.Node]) -> None:
        self.boxes.append(replace(box, place=len(self.boxes)))
        for value in dict.fromkeys(values):
            if value in self.behind:
                start, through = self.behind[value]
                carried = self.words.carried(self.flow.dims.get(value, ()))
                self.edges.append(Edge(start, box.name, carried, through))

    def _box(self, node: fx.Node, read: Mapping[str, fx.Node]) -> Box:
        layer = self.layer.get(node.name, "")
        operator = _operator(node)
        learned = [name for name in read if self._learned(name)]
        own = module_paths(learned)
        title = own.pop() if len(own) == 1 else _module(node)
        lines: dict[tuple[tuple[Chip, ...], ...], list[str]] = {}
        for name, source in read.items():
            shown = self._shown(name, title)
            lines.setdefault(tuple(map(self.words.chips, self.flow.dims.get(source, ()))), []).append(shown)
        short = title.removeprefix(layer).strip(".") if layer else title
        told = tuple((", ".join(dict.fromkeys(names)), chips) for chips, names in lines.items())
        return Box(node.name, short or operator, operator, "weights" if learned else "join", told, layer)

    def _learned(self, name: str) -> bool:
        return isinstance(attribute(self.program.graph_module, name), nn.Parameter)

    def _shown(self, name: str, title: str) -> str:
        """Return a tensor's name relative to its module; folded constants, which no module names, are `constant`."""
        if title and name.startswith(f"{title}."):
            return name.removeprefix(f"{title}.")
        return name if self._learned(name) else "constant"

    def _tensors(self, node: fx.Node) -> dict[str, fx.Node]:
        """Return the parameters and buffers that a node reads, directly or behind operators on constants, with their get_attr nodes."""
        found: dict[str, fx.Node] = {}
        waiting = [source for source in operands(node) if source not in self.flow.varies]
        for each in waiting:
            waiting += [source for source in operands(each) if source not in waiting]
            name = str(each.target)
            if each.op == "get_attr" and isinstance(attribute(self.program.graph_module, name), Tensor):
                found[name] = each
        return found


def _is_value(node: fx.Node) -> bool:
    """Return whether the value of a node contains a tensor (and is not a size)."""
    value = node.meta.get("val")
    return any(isinstance(each, Tensor) for each in (value if isinstance(value, (tuple, list)) else (value,)))


def _operator(node: fx.Node) -> str:
    """Return the operator's name without its library and overload."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def _module(node: fx.Node) -> str:
    """Return the path of the innermost module that a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _operator_label(node: fx.Node) -> tuple[str, ...]:
    """Return the name of an operator on one value; nothing for a view."""
    schema = getattr(node.target, "_schema", None)
    is_view = schema is None or any(each.alias_info is not None for each in schema.returns)
    return () if is_view else (_operator(node),)


def _sections(boxes: Sequence[Box], edges: Sequence[Edge]) -> Iterator[Section]:
    """Yield layers and what lies between them, in graph order; layers like an earlier one are drawn as that one."""
    parts: dict[tuple[int, str], list[Box]] = {}
    begun: dict[str, int] = {}
    for box in boxes:
        if box.layer:
            begun.setdefault(box.layer, len(begun) + 1)
        parts.setdefault((begun.get(box.layer, len(begun)), box.layer), []).append(box)
    where = {box.name: (*key, box.title) for key, own in parts.items() for box in own}
    known: dict[Any, str] = {}
    made: list[Section] = []
    for key in sorted(parts, key=lambda key: (key[0], not key[1])):
        section = _section(key, parts[key], edges, where)
        alike = _shape(section) if key[1] else key
        first = known.setdefault(alike, section.title)
        if key[1] and made and first == made[-1].title and made[-1].layers:
            made[-1] = replace(made[-1], layers=(*made[-1].layers, key[1]))
        else:
            made.append(replace(section, drawn_as=first if first != section.title else ""))
    yield from made


def _section(
    key: tuple[int, str], own: Sequence[Box], edges: Sequence[Edge], where: Mapping[str, tuple[int, str, str]]
) -> Section:
    """Return the boxes and edges of a section, with small boxes for the sources and targets of its values: layers, or else boxes."""
    inside = {box.name for box in own}
    sources: dict[str, Box] = {}
    targets: dict[str, dict[str, None]] = {}
    lines: dict[tuple[str, str], Edge] = {}
    for edge in edges:
        if edge.start in inside and edge.end in inside:
            lines[edge.start, edge.end] = edge
        elif edge.end in inside:
            _, origin, box = where[edge.start]
            name = f"from {edge.start}"
            sources[name] = Box(name, origin or box, "", "from")
            lines[name, edge.end] = replace(edge, start=name)
        elif edge.start in inside:
            _, target, box = where[edge.end]
            name = f"to {edge.start} {'layers' if target else edge.end}"
            targets.setdefault(name, {})[target or box] = None
            lines[edge.start, name] = replace(edge, end=name)
    title = key[1] or _between(key[0], [layer for _, layer, _ in where.values()])
    ends = [Box(name, _shortened(list(found)), "", "to") for name, found in targets.items()]
    layers = (key[1],) if key[1] else ()
    return Section(title, layers, (*sources.values(), *own, *ends), tuple(lines.values()))


def _shortened(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _between(after: int, layers: Sequence[str]) -> str:
    """Return the title of a part without a layer, by the layer that begins before it; `layers` are those of all boxes, in graph order."""
    names = list(dict.fromkeys(name for name in layers if name))
    if not names:
        return "the whole network"
    return f"after {names[after - 1]}" if after else "before the layers"


def _shape(section: Section) -> Any:
    """Return the drawing of a layer, without the names of nodes and of other sections."""
    own = [box for box in section.boxes if box.kind not in ("from", "to")]
    place = {box.name: i for i, box in enumerate(own)}
    edges = [edge for edge in section.edges if edge.start in place and edge.end in place]
    lines = tuple((place[edge.start], place[edge.end], edge.groups, edge.through) for edge in edges)
    return tuple((box.title, box.operator, box.lines) for box in own), lines
