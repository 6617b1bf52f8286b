"""Rank plans: the ways to write each matrix, whole or as factors of some rank, each with its cost by a meter and its error.

Matrices that read one value (queries, keys and values) are decided about together: their factors may share the first, thin product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor, nn

from fxprune.analysis import Analysis, Matrix, matrices
from fxprune.cost.budgets import Meter
from fxprune.cost.subgraph import Values, part, values_at
from fxprune.cost.table import GRAINS
from fxprune.ir import Point, Program, copy_graph, rebuild
from fxprune.rewrite.factorize import Factorized, Factors, factorize
from fxprune.rewrite.merge_factors import pairs
from fxprune.rules import packet_of
from fxprune.search import knapsack
from fxprune.search.alternatives import FASTER
from fxprune.search.budget_search import Draft
from fxprune.search.svd import MatrixGroup, Spectrum

_KNOTS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Ranks that are costed, as shares of the one at which factors save no parameters."""


@dataclass(frozen=True, eq=False)
class RankOption:
    """One way to write the matrices of a choice: as they are (no parts), or each part's matrices as factors with one first product."""

    parts: tuple[tuple[Spectrum, int], ...]
    cost: float
    error: float

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each weight that becomes factors, by name."""
        return {matrix.weight: rank for spectrum, rank in self.parts for matrix in spectrum.matrices}


@dataclass(frozen=True, eq=False)
class RankChoice:
    """Matrices that are decided about together, and the ways to write them.

    The first of `ways` leaves the matrices as they are; `slow` are the factors that are not faster than that.
    """

    group: MatrixGroup
    joint: Spectrum
    ways: tuple[RankOption, ...]
    slow: tuple[RankOption, ...] = ()

    @property
    def dense(self) -> RankOption:
        """Way that leaves the matrices as they are."""
        return self.ways[0]


def groups(
    analysis: Analysis, apart: bool = False, takes: Callable[[str], bool] = lambda weight: True
) -> list[MatrixGroup]:
    """Return the matrices that factors can replace, those that read one value together unless `apart`; existing factors are left out.

    `takes` says which weights may be replaced.
    """
    program = analysis.program
    factors = {name for pair in pairs(program) for name in pair.weights}
    found: dict[tuple[str, ...], list[Matrix]] = {}
    for name, matrix in matrices(program, analysis.flow).items():
        weight = program.tensors()[matrix.weight]
        fits = min(matrix.read(weight).shape) > 1 and all(size == 1 for size in weight.shape[2:])
        if fits and weight.is_floating_point() and matrix.weight not in factors and takes(matrix.weight):
            alone = name if apart or weight.ndim > 2 else ""
            key = (matrix.source.name, str(packet_of(matrix.node.target)), alone)
            found.setdefault(key, []).append(matrix)
    return [tuple(group) for group in found.values()]


def with_members(found: Sequence[MatrixGroup]) -> list[MatrixGroup]:
    """Return the groups, and each matrix of a larger group alone: factors may share a product, or not."""
    members = ((matrix,) for group in found if len(group) > 1 for matrix in group)
    return list(dict.fromkeys([*found, *members]))


def levels(even: float) -> list[int]:
    """Return candidate ranks below `even`, the one at which no parameters are saved, rounded to widths at which runtimes are fast."""
    step = next(step for least, step in GRAINS if even >= least)
    rounded = {max(step, int(share * even) // step * step) for share in _KNOTS}
    return sorted(rank for rank in rounded if rank < even)


Levels = Callable[[Spectrum], Sequence[int]]
"""Function that gives the ranks of a spectrum that are costed."""


@dataclass
class RankCostTable:
    """Cost table of rank choices at a point, by a meter; matrices of the same sizes share their measurements."""

    program: Program
    meter: Meter
    point: Point | None
    wanted: Levels = field(default=lambda spectrum: levels(spectrum.even))

    def choices(self, found: Sequence[MatrixGroup], spectra: Sequence[Spectrum]) -> list[RankChoice]:
        """Return a choice for each group; `spectra` are those of the groups and of their members."""
        values = values_at(self.program, self.point)
        by_group = {spectrum.matrices: spectrum for spectrum in spectra}
        return [self._choice(group, by_group, values) for group in found]

    def _choice(
        self, group: MatrixGroup, spectra: Mapping[MatrixGroup, Spectrum], values: Values
    ) -> RankChoice:
        joint = spectra[group]
        forms: list[tuple[tuple[Spectrum, int], ...]] = [((joint, rank),) for rank in self.wanted(joint)]
        if len(group) > 1:
            alone = [spectra[(matrix,)] for matrix in group]
            forms += [tuple((each, rank) for each in alone) for rank in self._common(alone)]
        whole = part(self.program, frozenset(matrix.node.name for matrix in group), values)
        small = cache(whole.program)
        asked: dict[int, tuple[str, Callable[[], Program]]] = {-1: (whole.signature, small)}
        for i, form in enumerate(forms):
            told = " ".join(str(rank) for _, rank in form)
            asked[i] = (f"{whole.signature} ranks {told}", lambda form=form: _thin(small(), form))  # type: ignore[misc]
        costs = self.meter(asked)
        errors = [sum(float(spectrum.errors[rank]) for spectrum, rank in form) for form in forms]
        ways = [RankOption(form, costs[i], errors[i]) for i, form in enumerate(forms)]
        fast = [way for way in ways if way.cost <= FASTER * costs[-1]]
        slow = tuple(way for way in ways if way not in fast)
        return RankChoice(group, joint, (RankOption((), costs[-1], 0.0), *fast), slow)

    def _common(self, alone: Sequence[Spectrum]) -> list[int]:
        """Return the candidate ranks that these matrices have in common."""
        return sorted(set.intersection(*(set(self.wanted(each)) for each in alone)))


def _thin(program: Program, form: Sequence[tuple[Spectrum, int]]) -> Program:
    """Return a small program with factors of these ranks, to be costed only: their values don't matter."""
    factors: dict[str, Factors] = {}
    for spectrum, rank in form:
        factors |= spectrum.factors(rank, program.tensors())
    return factorize(program, dict.fromkeys(factors, 1), factors=factors).program


def apply_ranks(program: Program, ways: Sequence[RankOption]) -> Factorized:
    """Return the program with its matrices written in these ways, and with biases that make up for the mean of what is lost."""
    tensors = program.tensors()
    ranks: dict[str, int] = {}
    factors: dict[str, Factors] = {}
    biases: dict[str, Tensor] = {}
    for way in ways:
        ranks |= way.ranks
        for spectrum, rank in way.parts:
            factors |= spectrum.factors(rank, tensors)
            biases |= spectrum.biases(rank, tensors)
    moved = {name: nn.Parameter(value, tensors[name].requires_grad) for name, value in biases.items()}
    based = rebuild(program, copy_graph(program), moved) if moved else program
    return factorize(based, ranks, factors=factors)


@dataclass(frozen=True, eq=False)
class RankDrafts:
    """Drafts of rank plans, for the budget search: one way for each choice, so that the sum of errors is least."""

    program: Program
    choices: Sequence[RankChoice]
    more: str = ""

    @property
    def whole(self) -> float:
        """Cost of all matrices as they are."""
        return sum(choice.dense.cost for choice in self.choices)

    def draft(self, ways: Sequence[RankOption]) -> Draft:
        """Return the draft of a plan with these ways."""
        cost, error = sum(way.cost for way in ways), sum(way.error for way in ways)
        key = str([[(s.matrices[0].weight, rank) for s, rank in way.parts] for way in ways])
        return Draft(cost, error, key, lambda: apply_ranks(self.program, ways).program, tuple(ways))

    def within(self, cost: float) -> Draft | None:
        """Return the draft of least error within a cost; None where there is none."""
        places = knapsack.choose_options(self._costs(), cost)
        if places is None:
            return None
        return self.draft([choice.ways[i] for choice, i in zip(self.choices, places, strict=True)])

    def frontier(self) -> list[tuple[float, float]]:
        """Return the (cost, error) of the best ways for budgets of all sizes."""
        return knapsack.frontier(self._costs())

    def _costs(self) -> list[list[tuple[float, float]]]:
        return [[(way.cost, way.error) for way in choice.ways] for choice in self.choices]

    def least(self) -> Draft:
        """Return the draft of the cheapest ways."""
        return self.draft([min(choice.ways, key=lambda way: way.cost) for choice in self.choices])


def cheapest_at_least(choice: RankChoice, ranks: Mapping[MatrixGroup, int]) -> RankOption:
    """Return the cheapest way in which all matrices have at least the given ranks; the dense one where there is no such way."""
    good = [
        way
        for way in choice.ways[1:]
        if all(rank >= ranks[spectrum.matrices] for spectrum, rank in way.parts)
    ]
    return min(good, key=lambda way: way.cost, default=choice.dense)
