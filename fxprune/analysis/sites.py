"""Prunable sites: the axes that are decided together, and the nodes whose cost depends on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxprune.analysis.axes import Analysis, Axis
from fxprune.analysis.dim_inference import flat_dims
from fxprune.analysis.regions import Region
from fxprune.dims import Dim, leaves
from fxprune.ir import operands

#: roles that are decided by default
DECIDED = frozenset({"heads", "qk", "v", "ffn", "channels", "rank"})


@dataclass(frozen=True, eq=False)
class Site:
    """Axis, the axes within each of whose units a choice may differ (qk and v of heads), and the nodes that compute with any of them.

    `branch` is the residual branch that contains this site and no other (residual widths aside), "" where there is none.
    """

    main: Axis
    inner: tuple[Axis, ...]
    nodes: frozenset[str]
    branch: str = ""

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (self.main, *self.inner)


def find_sites(
    analysis: Analysis, hidden: bool = False, takes: Callable[[Axis | Region], bool] = lambda part: True
) -> tuple[Site, ...]:
    """Return the sites in the order of the axes: exact axes of the roles DECIDED and, with `hidden`, the width of residual streams.

    `takes` says which axes, and which branches, may be decided about. Units among which is chosen are no sites: removed ones are not
    silent, but never chosen, and the others share what was theirs.
    """
    roles = DECIDED | ({"hidden"} if hidden else set())
    plain = [axis for axis in analysis.axes if axis.role in roles and not axis.choices]
    axes = [axis for axis in plain if (axis.exact or axis.role == "hidden") and takes(axis)]
    heads = {axis.name for axis in outermost([axis for axis in axes if axis.role == "heads"])}
    axes = [axis for axis in axes if axis.role != "heads" or axis.name in heads]
    owner = {axis.name: _owner(analysis, axis, heads) for axis in axes if axis.role in ("qk", "v")}
    by_leaf = carriers(analysis)
    found = []
    for main in axes:
        if not owner.get(main.name):
            inner = tuple(axis for axis in axes if owner.get(axis.name) == main.name)
            nodes = frozenset().union(*(by_leaf.get(axis.leaf, set()) for axis in (main, *inner)))
            found.append(Site(main, inner, nodes))
    return _with_branches(analysis, found, takes)


def _owner(analysis: Analysis, axis: Axis, heads: set[str]) -> str:
    """Return the name of the heads for each of which an axis may keep different indices, "" where there are none."""
    return next((name for name in analysis.within(axis.name) if name in heads), "")


def carriers(analysis: Analysis) -> dict[Dim, set[str]]:
    """Return the names of the nodes that compute with each atom: it is in their value or in an operand."""
    found: dict[Dim, set[str]] = {}
    for node in analysis.program.graph.nodes:
        if node.op == "call_function":
            dims = [d for n in (node, *operands(node)) for d in flat_dims(analysis.flow.dims.get(n, ()))]
            for leaf in dict.fromkeys(leaf for dim in dims for leaf in leaves(dim)):
                found.setdefault(leaf, set()).add(node.name)
    return found


def _with_branches(
    analysis: Analysis, found: list[Site], takes: Callable[[Axis | Region], bool]
) -> tuple[Site, ...]:
    branches = [r for r in analysis.regions if r.unit == "branch" and not r.why and takes(r)]
    named: dict[str, str] = {}
    for region in branches:
        inside = [site.main.name for site in found if site.nodes <= region.nodes]
        others = [site for site in found if site.main.role != "hidden"]
        touched = [site.main.name for site in others if site.nodes & region.nodes]
        if len(inside) == 1 and touched == inside:
            named[inside[0]] = region.name
    return tuple(Site(s.main, s.inner, s.nodes, named.get(s.main.name, "")) for s in found)


def outermost(axes: list[Axis]) -> list[Axis]:
    """Keep, of head axes that multiply in one tensor (groups × queries per group), the one with the most members: cut once, not twice."""
    chosen: list[Axis] = []
    for axis in sorted(axes, key=lambda axis: -len(axis.members)):
        if not any(multiply(axis, other) for other in chosen):
            chosen.append(axis)
    return chosen


def multiply(one: Axis, other: Axis) -> bool:
    """Return whether a position of some tensor belongs to a unit of both axes (segments of a fused weight may hold one each)."""
    shared = {(m.name, m.dim): m for m in one.members}
    pairs = [(shared[(m.name, m.dim)], m) for m in other.members if (m.name, m.dim) in shared]
    return any(set(a.indices(0)) & set(b.indices(0)) for a, b in pairs)
