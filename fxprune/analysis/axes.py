"""Analysis of a program: its axes (dimensions that can shrink) and its refusals (what stays whole, and why)."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import fx, nn

from fxprune.analysis.axis_names import name_axes
from fxprune.analysis.cache import per_program
from fxprune.analysis.dim_inference import flat_dims, walk
from fxprune.analysis.exactness import Activations, zero_set
from fxprune.analysis.nested_axes import outer_atoms
from fxprune.analysis.regions import Region, find_regions
from fxprune.analysis.roles import find_bottlenecks, find_mixtures, find_weighted_sums, role_of
from fxprune.dims import Dim, coordinates, is_pinned, leaves
from fxprune.dims.dim import Pin, dim_text, pinned
from fxprune.dims.masks import keep_mask
from fxprune.errors import SelectionError
from fxprune.ir import HasSummary, Program, Summary, attribute, quantity, source_line
from fxprune.ir.edit import describe_tensor
from fxprune.rules import Flow
from fxprune.rules.dependence import divisions
from fxprune.rules.facts import Choice

_UNITS = (("layer", "layers"), ("branch", "branches"))


@dataclass(frozen=True)
class Member:
    """Dimension of a parameter (`learned`) or buffer that carries an axis; `notation` shows how its index composes.

    `told` is its name; behind a table that was computed once and stored, the user's own tensors that it stands for.
    """

    name: str
    dim: int
    notation: str
    learned: bool
    carrier: Dim = field(repr=False, compare=False)
    _leaf: Dim = field(repr=False, compare=False)
    told: str = field(default="", compare=False)

    def indices(self, unit: int) -> list[int]:
        """Return the flat positions along `dim` that belong to one unit of the axis."""
        kept = torch.ones(self._leaf.size, dtype=torch.bool)
        kept[unit] = False
        return (~keep_mask(self.carrier, {self._leaf: kept})).nonzero().flatten().tolist()


@dataclass(frozen=True)
class Axis:
    """Dimension that can shrink: all its members lose the same indices together.

    `exact` means that removal equals zeroing its units in the `readers` (parameters), and masking their activations, since no statistic
    of weights changes with it; at the nodes `choices` it equals never choosing them: their logits are -inf, and the others share what
    was theirs. `meaning` says which of the two. Where it is False, `why_inexact` is the reason. At least `least` units must stay (a
    router's top k). `leaving` are parameters that leave with units, those of experts that are modules of their own.
    """

    name: str
    role: str
    size: int
    exact: bool
    why_inexact: str
    members: tuple[Member, ...]
    readers: tuple[str, ...]
    leaf: Dim = field(repr=False, compare=False)
    choices: tuple[str, ...] = ()
    least: int = 1
    leaving: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """The state of removed units that removal equals: `zeroed`, `never chosen`, or both; "" for an inexact axis."""
        states = [("never chosen", bool(self.choices)), ("zeroed", bool(self.readers) or not self.choices)]
        return " and ".join(state for state, holds in states if holds) if self.exact else ""


@dataclass(frozen=True)
class Refusal:
    """Part of a program that stays whole, and why: the node that requires it, its operator, and the user's own source line.

    `places` are the (tensor, dim) that stay whole, empty for all that an unknown operator touches.
    """

    what: str
    size: int
    why: str
    node: str
    operator: str
    source: str
    places: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, repr=False)
class Analysis(HasSummary):
    """Axes and refusals that `analyze` found in a program."""

    program: Program = field(repr=False)
    flow: Flow = field(repr=False)
    axes: tuple[Axis, ...]
    refusals: tuple[Refusal, ...]

    @cached_property
    def by_name(self) -> dict[str, Axis]:
        return {axis.name: axis for axis in self.axes}

    @cached_property
    def digest(self) -> str:
        """Hash of the axes' names and sizes: equal for programs that have the same axes."""
        text = "\n".join(f"{axis.name} {axis.size}" for axis in sorted(self.axes, key=lambda axis: axis.name))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The layers and residual branches that can be bypassed, then repeated modules that can't, with the reason."""
        roles = [(a.role, frozenset(m.name for m in a.members if m.learned)) for a in self.axes]
        return find_regions(self.program, self.flow, roles)

    def region(self, name: str) -> Region:
        """Return the region of this name; SelectionError with the nearest names where there is none, or with the reason why it can't go."""
        found = {region.name: region for region in reversed(self.regions)}.get(name)
        if found is None:
            raise _no_such(("region", "regions"), name, [region.name for region in self.regions])
        if found.why:
            raise SelectionError(f"region {name} can't go: {found.why}")
        return found

    def within(self, name: str) -> tuple[str, ...]:
        """Return the axes for whose units this one may keep different indices (each head its own); empty where nothing may differ."""
        outer, _ = outer_atoms(self.flow, self.axis(name).leaf)
        return tuple(axis.name for axis in self.axes if axis.leaf in outer)

    def told_readers(self, axis: Axis) -> tuple[str, ...]:
        """Return the readers of an axis by name, those that are no tensors of the user with what they stand for."""
        nodes = self.program.reads()
        return tuple(describe_tensor(nodes[name]) for name in axis.readers)

    def axis(self, name: str) -> Axis:
        """Return the axis of this name; SelectionError with the nearest names where there is none."""
        if name not in self.by_name:
            raise _no_such(("axis", "axes"), name, list(self.by_name))
        return self.by_name[name]

    def summary(self) -> Summary:
        """The axes, and how many parts stay whole and how many regions can go."""
        axes, refusals = quantity(len(self.axes), "axis", "axes"), quantity(len(self.refusals), "refusal")
        units = Counter(region.unit for region in self.regions if not region.why)
        regions = ", ".join(quantity(units[unit], unit, plural) for unit, plural in _UNITS)
        columns = ("axis", "role", "size", "exact", "members")
        rows = (
            (a.name, a.role, str(a.size), "yes" if a.exact else "no", str(len(a.members))) for a in self.axes
        )
        notes = (f"regions that can go: {regions}",)
        return Summary(f"Analysis: {axes}, {refusals}", columns, tuple(rows), notes)


def _no_such(what: tuple[str, str], name: str, names: list[str]) -> SelectionError:
    """Return the error for an unknown name, with the nearest names."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    known = f"nearest: {', '.join(near)}" if near else f"the program has {len(names)} {what[1]}"
    return SelectionError(f"no {what[0]} {name!r} in this program; {known}")


@per_program
def analyze(program: Program) -> Analysis:
    """Infer which dimensions of a program are coupled, and which of them can shrink; no weight is read or allocated.

    The result is kept with the program, and valid until its graph, its tensors or the rules change; do not edit it.
    """
    flow = walk(program)
    places = _places(program, flow)
    names = {name for members in places.values() for name, _, _ in members}
    parameters = {name for name in names if _is_learned(program, name)}
    learned = {leaf for leaf, members in places.items() if any(name in parameters for name, _, _ in members)}
    free = [leaf for leaf in places if leaf in learned and leaf.size > 1 and not is_pinned(leaf)]
    roles = _roles(flow)
    ranks, experts = (
        (("rank", leaf) for leaf in find_bottlenecks(flow)),
        (("experts", leaf) for leaf in find_mixtures(flow)),
    )
    for evidence, leaf in (*ranks, *experts, *find_weighted_sums(flow)):
        roles.setdefault(leaf, set()).add(evidence)
    chosen = {leaf: role_of(roles.get(leaf, set())) for leaf in free}
    told = {name: describe_tensor(node) for name, node in program.reads().items()}
    called = name_axes(chosen, places, program.labels, parameters)
    short = {leaf: f"{full.rpartition('.')[2]}:{leaf.size}" for leaf, full in called.items()}
    facts = _Facts(flow, parameters)
    members = {leaf: _members(leaf, places[leaf], short, (parameters, told)) for leaf in free}
    axes = tuple(_axis(flow, leaf, (called[leaf], chosen[leaf], members[leaf]), facts) for leaf in free)
    whole = [leaf for leaf in places if leaf in learned and leaf.size > 1 and is_pinned(leaf)]
    return Analysis(program, flow, axes, _refusals(program, flow, whole, (places, told)))


Places = list[tuple[str, int, Dim]]


def _places(program: Program, flow: Flow) -> dict[Dim, Places]:
    """Return where each atom occurs: (parameter or buffer, dimension, the dimension's dim), in graph order."""
    places: dict[Dim, Places] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        for place, dim in enumerate(flow.dims.get(node, ())):
            for leaf in dict.fromkeys(leaves(dim)):
                places.setdefault(leaf, []).append((str(node.target), place, dim))
    return {leaf: list(dict.fromkeys(found)) for leaf, found in places.items()}


def _members(
    leaf: Dim, places: Places, short: dict[Dim, str], known: tuple[set[str], Mapping[str, str]]
) -> tuple[Member, ...]:
    parameters, told = known
    return tuple(
        Member(n, d, dim_text(dim, short), n in parameters, dim, leaf, told[n]) for n, d, dim in places
    )


def _is_learned(program: Program, name: str) -> bool:
    value = attribute(program.graph_module, name)
    return isinstance(value, nn.Parameter) and (value.is_floating_point() or value.is_complex())


def _roles(flow: Flow) -> dict[Dim, set[str]]:
    roles: dict[Dim, set[str]] = {}
    for dim, role in flow.roles:
        for leaf in leaves(dim):
            roles.setdefault(leaf, set()).add(role)
    return roles


T = TypeVar("T")


def _by_leaf(facts: Iterable[T], dims: Callable[[T], Iterable[Dim]]) -> dict[Dim, list[T]]:
    """Group facts by the atoms that their dims carry."""
    found: dict[Dim, list[T]] = {}
    for fact in facts:
        for leaf in dict.fromkeys(leaf for dim in dims(fact) for leaf in leaves(dim)):
            found.setdefault(leaf, []).append(fact)
    return found


class _Facts:
    """Facts that rules established, by atom: each axis gets only its own."""

    def __init__(self, flow: Flow, parameters: set[str]) -> None:
        self.parameters = parameters
        self.contractions = _by_leaf(flow.contractions, lambda fact: [fact.dim])
        self.divisions = _by_leaf(divisions(flow), lambda fact: flow.dims[fact[1]])
        self.choices = _by_leaf(flow.choices, lambda fact: [fact.dim])
        self.least = _by_leaf(flow.least, lambda fact: [fact[0]])
        self.activations = Activations(flow)
        # Of several notes, the first one counts.
        self.notes = {leaf: why for dim, why, _ in reversed(flow.inexact) for leaf in leaves(dim)}


def _axis(flow: Flow, leaf: Dim, what: tuple[str, str, tuple[Member, ...]], facts: _Facts) -> Axis:
    name, role, members = what
    sums, chosen = facts.contractions.get(leaf, []), facts.choices.get(leaf, [])
    zeros, why = zero_set(flow, leaf, (sums, chosen), facts.divisions.get(leaf, []))
    why = facts.notes.get(leaf, "") or facts.activations.statistic(leaf, sums, chosen) or why
    choices = tuple(choice.node.name for choice in chosen)
    least = max((_least_units(dim, leaf, count) for dim, count, _ in facts.least.get(leaf, [])), default=1)
    own = tuple(each for each in _leaving(flow, chosen) if each in facts.parameters)
    return Axis(name, role, leaf.size, not why, why, members, tuple(sorted(zeros)), leaf, choices, least, own)


def _leaving(flow: Flow, chosen: Sequence[Choice]) -> list[str]:
    """Return the tensors that leave with units of an axis, by the nodes that choose among them."""
    taken = dict.fromkeys(flow.addends.taken(each.node) for each in chosen)
    joins = [each.node for each in chosen if each.joins]
    return flow.addends.leaving([of for of in taken if of], joins)


def _least_units(dim: Dim, leaf: Dim, least: int) -> int:
    """Return how many units must stay, where all of other axes do, so that `least` positions of a dim are left."""
    units = coordinates(dim, leaf)
    each, others = int((units == 0).sum()), int((units < 0).sum())
    return min(leaf.size, max(1, math.ceil((least - others) / each)))


def _refusals(
    program: Program, flow: Flow, whole: list[Dim], known: tuple[Mapping[Dim, Places], Mapping[str, str]]
) -> tuple[Refusal, ...]:
    places, told = known
    nodes = {node.name: node for node in program.graph.nodes}
    what = {leaf: _what(places[leaf], told) for leaf in whole}
    found = [_pinned_refusal(program, flow, leaf, (what[leaf], places[leaf]), nodes) for leaf in whole]
    pins = [Pin(why, node.name) for node, why in flow.unknown.items()]
    return (*(_refusal(f"all that {pin.node} touches", 0, pin, nodes) for pin in pins), *found)


def _pinned_refusal(
    program: Program, flow: Flow, leaf: Dim, known: tuple[str, Places], nodes: Mapping[str, fx.Node]
) -> Refusal:
    what, places = known
    line = partial(_line, program, flow, leaf)
    where = frozenset((name, place) for name, place, _ in places)
    return _refusal(what, leaf.size, pinned(leaf), nodes, line, where)


def _line(program: Program, flow: Flow, leaf: Dim, node: fx.Node) -> str:
    """Return the source line of the node that pins an atom; for the graph's output, of the first output that carries the atom."""
    if node.op != "output":
        return source_line(node)
    given = program.named_outputs().values()
    carriers = (each for each in given if any(leaf in leaves(d) for d in flat_dims(flow.dims.get(each, ()))))
    return next((source_line(each) for each in carriers), "")


def _what(members: Places, told: Mapping[str, str]) -> str:
    name, place, _ = members[0]
    more = f" and {len(members) - 1} more" if len(members) > 1 else ""
    return f"dim {place} of {told[name]}{more}"


def _refusal(
    what: str,
    size: int,
    pin: Pin | None,
    nodes: Mapping[str, fx.Node],
    line: Callable[[fx.Node], str] = source_line,
    places: frozenset[tuple[str, int]] = frozenset(),
) -> Refusal:
    why, name = (pin.why, pin.node) if pin else ("", "")
    node = nodes.get(name)
    operator, source = (str(node.target), line(node)) if node else ("", "")
    return Refusal(what, size, why, name, operator, source, places)
