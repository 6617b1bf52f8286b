"""Low-rank factorisation, one-shot and without labels: plain or whitened SVD, ranks as given, by energy or by measured time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from fxprune.analysis import analyze
from fxprune.calibration.objective import DISTANCES
from fxprune.calibration.repair import check_repair, repair
from fxprune.errors import RefusedError
from fxprune.ir import Point, Program, Selection
from fxprune.pipeline import EMPTY, Context, Measuring, Outcome, require
from fxprune.search.budget_search import Target, search_budget
from fxprune.search.rank_plans import (
    RankChoice,
    RankCostTable,
    RankDrafts,
    RankOption,
    apply_ranks,
    cheapest_at_least,
    groups,
    levels,
    with_members,
)
from fxprune.search.svd import Spectrum, plain_spectra, whitened_spectra

#: update: (how `repair` goes about it, whether all matrices are re-fitted)
UPDATES: dict[str, tuple[str, bool]] = {
    "none": ("none", False),
    "second": ("readers", False),
    "all": ("all", True),
}


@dataclass(frozen=True)
class Lowrank(Measuring):
    """Replace matrices by products of two thinner ones where that is measured to be faster: by energy, rank or a share of the latency."""

    name: ClassVar[str] = "lowrank"
    uses: ClassVar[tuple[str, ...]] = ("data", "loss", "settings", "point", "cache", "seed")

    energy: float = 0.0  #: the share of each matrix's energy (squared singular values) that stays
    rank: int = 0  #: or the rank of each matrix
    latency: float = 0.0  #: or the share of the measured time that may be left: 0.5 is twice as fast
    whiten: bool = True  #: whether the SVD is of what the data make of a matrix (SVD-LLM), or of the matrix
    shared: bool = True  #: whether matrices that read one value may share their first product
    update: str = "all"  #: none, second or all: which matrices are re-fitted afterwards
    distance: str = "square"  #: square or divergence (for logits): what is kept small where no loss is given
    memory: int = 0  #: megabytes that moments of the data may take; what exceeds them is gathered in further passes (0: half of the model)

    def __post_init__(self) -> None:
        given = [name for name in ("energy", "rank", "latency") if getattr(self, name)]
        require(len(given) == 1, "say one of energy, rank, latency, as in lowrank(energy=0.95)")
        for name in ("energy", "latency"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must lie between 0 and 1, got {value:g}")
        require(self.rank >= 0, f"rank must be at least 1, got {self.rank}")
        require(self.memory >= 0, f"memory must be at least 1 megabyte, or 0, got {self.memory}")
        for option, table in (("update", UPDATES), ("distance", DISTANCES)):
            value = getattr(self, option)
            require(value in table, f"{option} must be one of {', '.join(table)}, got {value!r}")
        super().__post_init__()

    def needs(self) -> Mapping[str, str]:
        wants = self.whiten or self.update != "none"
        return {"data": "lowrank(…, whiten=False, update='none')"} if wants else {}

    def points(self, program: Program, context: Context = EMPTY) -> list[Point]:
        return [self.point(program, context)] if self.latency else []

    def check_data(self, program: Program, context: Context) -> None:
        check_repair(program, context.calibration(program), UPDATES[self.update][0])

    def run(self, program: Program, context: Context = EMPTY) -> Outcome:
        """Factorise where it pays, correct biases for what is lost, and re-fit matrices on the calibration data as `update` says.

        UsageError where calibration data are needed and absent.
        """
        self.check(context)
        context = context.checked(program)
        self.check_data(program, context)
        data = context.calibration(program)
        choices = self._choices(program, context)
        ways, details = self._decided(program, choices, context)
        done = apply_ranks(program, ways)
        details = {
            "ranks": [self._row(c, way, done.errors) for c, way in zip(choices, ways, strict=True)],
            **details,
        }
        biases = {name for way in ways for s, r in way.parts for name in s.biases(r, program.tensors())}
        if data is None or self.update == "none" or not done.names:
            return Outcome(done.program, Selection(), tuple(biases), details, done.names)
        how, everywhere = UPDATES[self.update]
        thin = {
            matrix.node.name for c, way in zip(choices, ways, strict=True) if way.parts for matrix in c.group
        }
        moved = () if everywhere else thin
        within = replace(self.scope(analyze(program)), roles=frozenset()).takes
        fit = repair(program, done.program, Selection(), data, how, context.refitting, moved, within)
        details["refits"] = [asdict(each) for each in fit.matrices]
        factors = {own for names in done.names.values() for own in names}
        changed = tuple(dict.fromkeys([*biases, *(name for name in fit.changed if name not in factors)]))
        return Outcome(fit.program, Selection(), changed, details, done.names, remarks=fit.remarks())

    def _choices(self, program: Program, context: Context) -> list[RankChoice]:
        analysis = analyze(program)
        found = groups(analysis, not self.shared, self.scope(analysis).takes)
        if not found:
            raise RefusedError("no matrix of this program can become two: see `fxprune explain`")
        context.say(f"singular values of {sum(map(len, found))} matrices")
        spectra = self._spectra(program, with_members(found), context)
        clock = context.clock(self.settings(context))
        context.say("measuring factors beside matrices")
        table = RankCostTable(program, clock, self.point(program, context), self._levels)
        return table.choices(found, spectra)

    def _spectra(self, program: Program, found: Sequence[Any], context: Context) -> list[Spectrum]:
        data = context.calibration(program)
        if data is None:
            return plain_spectra(program, found)
        objective = context.objective(self.distance)
        return whitened_spectra(program, found, data, objective, self.whiten, self.memory << 20)

    def _levels(self, spectrum: Spectrum) -> list[int]:
        """Return the ranks to measure: `rank` where it is given and below the break-even rank, or some below that."""
        if self.rank:
            return [self.rank] if self.rank < spectrum.even else []
        return levels(spectrum.even)

    def _decided(
        self, program: Program, choices: Sequence[RankChoice], context: Context
    ) -> tuple[Sequence[RankOption], dict[str, Any]]:
        """Return a way for each choice, and details of the search as plain data (none without a latency)."""
        if not self.latency:
            return [cheapest_at_least(choice, self._least(choice)) for choice in choices], {}
        clock = context.clock(self.settings(context))
        target = Target("latency", self.latency, self.point(program, context), clock)
        more = "" if self.shared else ", or allow shared=True"
        sought = search_budget(program, target, RankDrafts(program, choices, more), context.say)
        objective = context.objective(self.distance)
        said = "share of the squared norms" if context.data is None else objective.says
        return sought.draft.plan, sought.details() | {"error_is": said}

    def _least(self, choice: RankChoice) -> Mapping[Any, int]:
        """Return the smallest rank that each spectrum of a choice must have, by its matrices."""
        spectra = {s.matrices: s for way in (*choice.ways, *choice.slow) for s, _ in way.parts}
        return {group: self.rank or s.rank_of(self.energy) for group, s in spectra.items()}

    def _row(self, choice: RankChoice, way: RankOption, errors: Mapping[str, float]) -> dict[str, Any]:
        """Return the row of a report about the matrices of a choice: ranks, errors and costs, and why they are whole where they are."""
        outputs, columns = choice.joint.sizes
        best = min((*choice.ways[1:], *choice.slow), key=lambda each: each.cost, default=None)
        return {
            "weights": [matrix.weight for matrix in choice.group],
            "size": [outputs, columns],
            "ranks": [rank for _, rank in way.parts],
            "shared": len(way.parts) == 1 and len(choice.group) > 1,
            "missing": max((s.missing(rank) for s, rank in way.parts), default=0.0),
            "error": max((errors[name] for name in way.ranks), default=0.0),
            "dense": choice.dense.cost,
            "factors": way.cost if way.parts else best and best.cost,
            "why": "" if way.parts else self._why(choice),
        }

    def _why(self, choice: RankChoice) -> str:
        even = choice.joint.even
        if len(choice.ways) == 1:
            return f"no rank below {even:.0f}, where factors are as large, is measured to be faster"
        if self.latency:
            return "the budget is met without it"
        wanted = self.rank or choice.joint.rank_of(self.energy)
        return f"it needs rank {wanted}, and no such factors are measured to be faster (they are as large at {even:.0f})"
