"""Measured alternatives: lowerings of unequal units, factors or their product, split or dense products; each costed as a small program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fxprune.analysis import analyze
from fxprune.analysis.sites import carriers
from fxprune.cost.budgets import Meter
from fxprune.cost.subgraph import Part, Values, part, values_at
from fxprune.errors import RefusedError
from fxprune.gates import LOWERINGS, Gated
from fxprune.gates.lower import ZeroedProgram, copy_uneven, ragged, select_open, zero_closed
from fxprune.ir import Point, Program
from fxprune.rewrite.merge_factors import FactorPair, merge_factors, pairs
from fxprune.rewrite.shrink import shrink
from fxprune.rewrite.split import RowBlockSplit, split, splits

FASTER = 0.97
"""Factors count as faster where they cost at most this share of the matrix."""


def cheapest_lowerings(
    gated: Gated, trained: nn.Module | Mapping[str, Tensor] | None, meter: Meter, point: Point | None = None
) -> dict[str, str]:
    """Return, for each ragged outer axis, the row of LOWERINGS that costs least at a point by a meter (a `Clock` measures the runtime).

    `lower(gated, trained, cheapest_lowerings(gated, trained, clock))` uses them. Where an axis can't be computed in parts, only padding
    remains.
    """
    ready = zero_closed(gated, trained)
    found = {}
    for outer in ragged(ready):
        parts = _parts(ready, outer, point)
        costs = meter({how: (piece.signature, piece.program) for how, piece in parts.items()})
        found[outer] = min(costs, key=costs.__getitem__)
    return found


def _parts(ready: ZeroedProgram, outer: str, point: Point | None) -> dict[str, Part]:
    """Return the nodes that compute with the axis as a part, for each lowering that is possible."""
    found = {}
    for how in LOWERINGS:
        try:
            found[how] = _part(ready, outer, how, point)
        except RefusedError:
            continue
    return found


def _part(ready: ZeroedProgram, outer: str, how: str, point: Point | None) -> Part:
    program, units = copy_uneven(ready.program, ready.units, outer, how)
    before = {node.name for node in ready.program.graph.nodes}
    made = frozenset(n.name for n in program.graph.nodes if n.op == "call_function") - before
    analysis = analyze(program)
    own = made or frozenset(carriers(analysis).get(analysis.axis(outer).leaf, ()))
    touched = [unit for unit in units if outer in (unit.axis, unit.within) or unit not in ready.units]
    slim = shrink(program, select_open(analysis, touched))
    return part(slim, own, values_at(slim, point))


@dataclass(frozen=True)
class FactorsAlternative:
    """Costs of factors and of their product, by a meter (milliseconds of a `Clock`)."""

    weights: tuple[str, ...]
    rank: int
    sizes: tuple[int, ...]
    factors: float
    whole: float

    @property
    def pays(self) -> bool:
        """Whether the factors are faster."""
        return self.factors <= FASTER * self.whole


def cheaper_factors(
    program: Program, meter: Any, point: Point | None = None
) -> tuple[Program, list[FactorsAlternative]]:
    """Merge the factors that are not faster than their product by a meter; return the program and the costs of each pair."""
    values = values_at(program, point)
    found = {pair.weights: _measure_factors(program, pair, meter, values) for pair in pairs(program)}
    slim = merge_factors(program, lambda pair: not found[pair.weights].pays)
    return slim, list(found.values())


def _measure_factors(program: Program, pair: FactorPair, meter: Any, values: Values) -> FactorsAlternative:
    nodes = frozenset(matrix.node.name for matrix in (pair.first, *pair.seconds))
    thin = part(program, nodes, values)
    whole = (f"{thin.signature} merged", lambda: merge_factors(thin.program(), lambda pair: True))
    costs = meter({"factors": (thin.signature, thin.program), "whole": whole})
    return FactorsAlternative(pair.weights, pair.rank, pair.sizes, costs["factors"], costs["whole"])


@dataclass(frozen=True)
class SplitAlternative:
    """Costs of a split and of the dense products, by a meter (milliseconds of a `Clock`)."""

    weights: tuple[str, ...]
    products: int
    density: float
    dense: float
    split: float

    @property
    def pays(self) -> bool:
        """Whether the split is cheaper."""
        return self.split < self.dense


def cheaper_splits(
    program: Program,
    meter: Any,
    point: Point | None = None,
    takes: Callable[[str], bool] = lambda weight: True,
) -> tuple[Program, list[SplitAlternative]]:
    """Apply the splits that are cheaper than their dense products by a meter; return the program and the costs of each split.

    `takes` says which weights may be split.
    """
    found = splits(program, takes)
    verdicts = [_measure_split(program, each, meter, point) for each in found]
    chosen = [each for each, verdict in zip(found, verdicts, strict=True) if verdict.pays]
    return (split(program, chosen) if chosen else program), verdicts


def _measure_split(
    program: Program, found: RowBlockSplit, meter: Any, point: Point | None
) -> SplitAlternative:
    apart = split(program, [found])
    before = {node.name for node in program.graph.nodes}
    made = frozenset(n.name for n in apart.graph.nodes if n.op == "call_function") - before
    dense = part(program, frozenset(found.nodes), values_at(program, point))
    parts: dict[str, Part] = {"dense": dense, "split": part(apart, made, values_at(apart, point))}
    costs = meter({key: (each.signature, each.program) for key, each in parts.items()})
    tensors = program.tensors()
    there = sum(int((tensors[name] != 0).sum()) for name in found.weights)
    whole = sum(tensors[name].numel() for name in found.weights)
    return SplitAlternative(found.weights, len(found.groups), there / whole, costs["dense"], costs["split"])
