"""Per-layer sizes before and after pruning: heads and their dims, neurons, channels, experts, ranks, and removed layers and branches.

Sizes before are those of the axes. What is left of an axis is read from the smaller program's tensors: under their own names, as factors
(`_rows`, `_columns`), or in copies (`part0`, …: heads of unequal sizes). Every count must explain the shape of every tensor that it is
read from; one that doesn't is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import count, starmap, takewhile

import torch
from torch import Tensor

from fxprune.analysis.axes import Analysis, Axis, analyze
from fxprune.analysis.regions import Region
from fxprune.dims import Dim, leaves
from fxprune.dims.masks import new_size
from fxprune.ir import Program
from fxprune.ir.naming import FACTORS, part_name, part_tensor

RemainingCount = int | list[int] | None
"""Number of units left: one number, one for each head where they differ, None where it can't be counted."""


@dataclass(frozen=True)
class AxisSize:
    """Size of an axis in units; `before` and `after` of heads' dims are those of one head, as attention computes with them."""

    axis: str
    role: str
    before: int
    after: RemainingCount


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer: the axes that it has to itself, whether each branch is gone, and the ranks of factorized matrices."""

    name: str
    removed: bool
    sizes: tuple[AxisSize, ...]
    attentions: tuple[Attention, ...] = ()
    branches: Mapping[str, bool] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Attention:
    """Sizes of one attention, (before, after): query heads, heads of keys and values, and the dims of a head.

    `shared` are the heads of keys and values (grouped queries); equal to `heads` where each query head has its own.
    """

    heads: tuple[int, RemainingCount]
    shared: tuple[int, RemainingCount]
    qk: tuple[int, RemainingCount]
    v: tuple[int, RemainingCount]


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of all layers in order, and of the axes that belong to no layer alone (the width of the residual stream)."""

    layers: tuple[Layer, ...]
    rest: tuple[AxisSize, ...]


def count_layer_sizes(before: Program, after: Program, removed: Collection[str] = ()) -> LayerSizes:
    """Count the units of a program and of a smaller one made from it, layer by layer.

    `removed` are regions that are known to be gone (`Selection.removed`); those that have lost all of their weights are gone, too.
    """
    analysis = analyze(before)
    left = _Counter(analysis, after, frozenset(removed))
    regions = [region for region in analysis.regions if region.unit == "layer"]
    names = [region.name for region in regions]
    regions = [region for region in regions if region.nodes or not _holds(region.name, names)]
    owned = {region.name: [axis for axis in analysis.axes if _within(axis, region)] for region in regions}
    taken = {axis.name for axes in owned.values() for axis in axes}
    layers = tuple(_layer(analysis, left, region, owned[region.name]) for region in regions)
    return LayerSizes(layers, tuple(left.size(axis) for axis in analysis.axes if axis.name not in taken))


def _holds(path: str, names: Collection[str]) -> bool:
    """Return whether a module contains layers (an encoder beside a decoder), and is none itself."""
    return any(name.startswith(f"{path}.") for name in names)


def _within(axis: Axis, region: Region) -> bool:
    """Return whether all weights that carry an axis are the region's; one that can't go lists no weights, only its module's path."""
    names = [member.name for member in axis.members if member.learned]
    if region.parameters:
        return set(names) <= set(region.parameters)
    return all(name.startswith(f"{region.name}.") for name in names)


def _layer(analysis: Analysis, left: _Counter, region: Region, axes: list[Axis]) -> Layer:
    inside = [r for r in analysis.regions if r.unit == "branch" and r.nodes and r.nodes <= region.nodes]
    own = {axis.leaf for axis in axes}
    roles = {branch.name: {axis.role for axis in axes if _within(axis, branch)} for branch in inside}
    return Layer(
        region.name,
        left.gone(region),
        tuple(left.size(axis) for axis in axes),
        tuple(left.attention(dims) for dims in _attentions(analysis, own)),
        {_kind(roles[branch.name], branch.name): left.gone(branch) for branch in inside},
        left.ranks(region),
    )


def _kind(roles: set[str], name: str) -> str:
    """Return transformers' name for a part of a layer; a branch that is neither keeps its name."""
    return "attention" if "heads" in roles else "mlp" if roles & {"ffn", "experts"} else name


def _attentions(analysis: Analysis, own: set[Dim]) -> list[tuple[Dim, Dim, Dim]]:
    """Return the dims of heads, of q and k, and of v, of every attention over a layer's own heads, in graph order."""
    found = [(dim, role) for dim, role in analysis.flow.roles if role in ("heads", "qk", "v")]
    heads = [place for place, (dim, role) in enumerate(found) if role == "heads" and own & set(leaves(dim))]
    triples = [found[place : place + 3] for place in heads]
    complete = [each for each in triples if [role for _, role in each] == ["heads", "qk", "v"]]
    return [(heads, qk, v) for (heads, _), (qk, _), (v, _) in complete]


class _Counter:
    """Counter of the units that are left of axes in a smaller program."""

    def __init__(self, analysis: Analysis, after: Program, removed: frozenset[str]) -> None:
        slim = analyze(after)
        self.removed = removed
        self.analysis = analysis
        self.shapes = {name: tuple(value.shape) for name, value in after.tensors().items()}
        self.named = slim.by_name
        self.places: dict[tuple[str, int], list[Axis]] = {}
        for axis in slim.axes:
            for member in axis.members:
                self.places.setdefault((member.name, member.dim), []).append(axis)
        self.copies = {axis.name: self._copies(axis) for axis in analysis.axes}
        self.counts = {axis.name: self._counts(axis) for axis in analysis.axes}
        self.masks: dict[int, dict[Dim, Tensor]] = {}
        self.wrong = {axis.name for axis in analysis.axes if not self._explains(axis)}

    def size(self, axis: Axis) -> AxisSize:
        """Return an axis's size before and after; of one within heads, a number for each head where they differ."""
        counts = self.counts[axis.name]
        if axis.name in self.wrong:
            return AxisSize(axis.name, axis.role, axis.size, None)
        inner = axis.role in ("qk", "v") and len(counts) > 1
        return AxisSize(axis.name, axis.role, axis.size, _collapse_equal(counts) if inner else sum(counts))

    def attention(self, dims: tuple[Dim, Dim, Dim]) -> Attention:
        """Return the sizes of an attention, over its copies where heads of unequal sizes are computed apart."""
        heads, qk, v = dims
        shared = self._shared(heads)
        axes = [axis for axis in self.analysis.axes for dim in dims if axis.leaf in leaves(dim)]
        if any(axis.name in self.wrong for axis in axes):
            return Attention((heads.size, None), (shared.size, None), (qk.size, None), (v.size, None))
        number = max((len(self.counts[axis.name]) for axis in axes), default=1)
        kept = [self._kept(copy) for copy in range(number)]
        return Attention(
            (heads.size, sum(new_size(heads, one) for one in kept)),
            (shared.size, sum(new_size(shared, one) for one in kept)),
            (qk.size, _per_head(qk, heads, kept)),
            (v.size, _per_head(v, heads, kept)),
        )

    def _shared(self, heads: Dim) -> Dim:
        """Return the heads of keys and values: of the axes of the heads the one that most weights carry."""
        axes = [axis for axis in self.analysis.axes if axis.leaf in leaves(heads)]
        return max(axes, key=lambda axis: sum(m.learned for m in axis.members)).leaf if axes else heads

    def gone(self, region: Region) -> bool:
        """Return whether a region was removed, or none of its weights is left."""
        places = [(name, dim, copy) for name in region.parameters for dim in (0, 1) for copy in (None, 0)]
        return region.name in self.removed or (bool(places) and not any(starmap(self._found, places)))

    def ranks(self, region: Region) -> dict[str, int]:
        """Return the ranks of the region's factorized matrices, by name."""
        rows = {name: self.shapes.get(f"{name}{FACTORS[0]}") for name in region.parameters}
        return {name: shape[1] for name, shape in rows.items() if shape}

    def _found(self, name: str, dim: int, copy: int | None) -> tuple[str, int] | None:
        """Return where a dimension of a tensor is now: in the tensor itself, or in the factor that has it; None where it is gone."""
        own = name if copy is None else part_tensor(name, copy)
        for candidate in (own, f"{own}{FACTORS[dim]}" if dim < len(FACTORS) else own):
            if candidate in self.shapes:
                return candidate, dim
        return None

    def _spots(self, axis: Axis, copy: int | None) -> list[tuple[str, int]]:
        found = [self._found(member.name, member.dim, copy) for member in axis.members if member.learned]
        return [place for place in found if place]

    def _copies(self, axis: Axis) -> list[int | None]:
        """Return the numbers of the copies that an axis is in; [None] where it is as it was, nothing where it is gone."""
        if self._spots(axis, None):
            return [None]
        return list(takewhile(lambda copy: bool(self._spots(axis, copy)), count()))

    def _counts(self, axis: Axis) -> list[int]:
        return [self._count(axis, copy) for copy in self.copies[axis.name]]

    def _count(self, axis: Axis, copy: int | None) -> int:
        """Return the size by the axis's name, else that of the only new axis of its role at its places, else 1 (one unit makes no axis)."""
        name = axis.name if copy is None else part_name(axis.name, copy)
        if name in self.named:
            return self.named[name].size
        near = {a.name: a for place in self._spots(axis, copy) for a in self.places.get(place, ())}
        others = self.analysis.by_name
        fitting = [a for a in near.values() if a.role == axis.role and a.name not in others]
        return fitting[0].size if len(fitting) == 1 else 1

    def _kept(self, copy: int) -> dict[Dim, Tensor]:
        """Return masks with as many units of every axis as a copy has; which ones does not matter to sizes."""
        if copy not in self.masks:
            counts = {axis.leaf: self.counts[axis.name] or [0] for axis in self.analysis.axes}
            left = {leaf: found[min(copy, len(found) - 1)] for leaf, found in counts.items()}
            self.masks[copy] = {leaf: torch.arange(leaf.size) < number for leaf, number in left.items()}
        return self.masks[copy]

    def _explains(self, axis: Axis) -> bool:
        """Return whether the counts give the shape of every tensor that carries the axis."""
        for number, copy in enumerate(self.copies[axis.name]):
            kept = self._kept(number)
            for member in axis.members:
                place = self._found(member.name, member.dim, copy) if member.learned else None
                if place and new_size(member.carrier, kept) != self.shapes[place[0]][place[1]]:
                    return False
        return True


def _collapse_equal(counts: list[int]) -> RemainingCount:
    """Return one number where all are the same, 0 where there is none."""
    return counts if len(set(counts)) > 1 else max(counts, default=0)


def _per_head(dim: Dim, heads: Dim, kept: list[dict[Dim, Tensor]]) -> RemainingCount:
    """Return the dims of each head that is left."""
    return _collapse_equal([size for one in kept for size in [new_size(dim, one)] * new_size(heads, one)])
