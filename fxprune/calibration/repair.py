"""Weight re-fitting: after removal, re-fit the linear maps one after another along the graph, each to the values of the original program.

The pruned and the original program run in lockstep over the calibration data; each map is fitted on the inputs that the already
re-fitted part of the pruned program gives it (K-prune, arXiv 2308.03449). Where the result of a map goes into a residual sum, the target
is the sum in the original program, so that the fit also corrects the error that the residual stream has accumulated so far. What a reader
lost is merged into what it keeps by that: the fit of W_kept + W_removed·C, with C the regression of removed units on kept ones (GRAIL), has
the same normal equations.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from torch import Tensor

from fxprune.analysis.linear_maps import parameter_like
from fxprune.calibration.data import Calibration
from fxprune.calibration.least_squares import Fit, InputSums, Sums, best
from fxprune.calibration.lockstep import ActivationStore, Runner
from fxprune.calibration.logits import fit_logits
from fxprune.calibration.memory import live_limit
from fxprune.calibration.prefixes import Prefixes
from fxprune.calibration.processes import add_up, own_share
from fxprune.calibration.refits import Cut, FitTask
from fxprune.calibration.validation import check_range
from fxprune.errors import UsageError
from fxprune.ir import Program, Selection, copy_graph, rebuild
from fxprune.storage import let_go
from fxprune.storage.devices import OnDevice, compute_device
from fxprune.storage.kept_steps import keeper

HELD_BACK = 1 / 8
"""Share of the calibration data that is held back to compare fits."""

#: name: (whether weights are re-fitted, whether matrices that lost nothing are re-fitted as well, description)
REPAIRS: dict[str, tuple[bool, bool, str]] = {
    "none": (False, False, "nothing"),
    "mean": (False, False, "the mean of what a reader lost goes into its bias (FLAP)"),
    "readers": (True, False, "ridge least squares for the matrices that read removed units"),
    "all": (True, True, "the same for every matrix, for what it reads has moved as well"),
}

BEYOND = 4.0
"""How many times as large as on fitted rows the error on held-back rows is where these leave the span of the calibration data."""

NOTABLE = 1e-2
"""The least relative squared error that is worth a remark."""

#: what a repair re-fits beside matrices: name: description
FURTHER: dict[str, str] = {
    "kernels": "grouped and depthwise convolutions, as matrices of each group are",
    "norms": "scale and shift of batch norms: alone, or as the scale and bias of the convolution before",
    "logits": "queries and keys that lose dims: in a basis in which the kept ones give most of Q·Kᵀ",
}

Observe = Callable[[int, int], None]


@dataclass(frozen=True)
class Refitted:
    """Result of re-fitting one matrix: its parameter, the chosen fit, the relative squared error on held-back rows before and after.

    `tensors` are the parameters that were replaced, `fitted` is the error after on the rows that it was fitted on (None: not known). Of
    logits, it is the matrix of the queries, and the error of what reads both.
    """

    name: str
    how: str
    before: float
    after: float
    tensors: tuple[str, ...] = ()
    fitted: float | None = None

    @property
    def excess(self) -> float:
        """How many times as large as on fitted rows the error on held-back rows is; 0 where it is not known, or too small to matter."""
        known = self.fitted is not None and self.after > NOTABLE
        return self.after / max(self.fitted or 0.0, 1e-12) if known else 0.0


@dataclass(frozen=True, eq=False)
class Repaired:
    """The re-fitted program, the results in graph order, and why logits were not re-fitted, by the node that computes them."""

    program: Program
    matrices: tuple[Refitted, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the parameters that were replaced."""
        return tuple(dict.fromkeys(name for entry in self.matrices for name in entry.tensors))

    def remarks(self) -> tuple[str, ...]:
        """Return a remark where held-back rows leave the span of the rows that matrices were fitted on, with the worst three."""
        beyond = sorted(
            (each for each in self.matrices if each.excess > BEYOND), key=lambda each: -each.excess
        )
        if not beyond:
            return ()
        worst = ", ".join(f"{each.name} ({each.after:.2g} against {each.fitted:.2g})" for each in beyond[:3])
        told = (
            f"re-fitted {len(beyond)} of {len(self.matrices)} matrices on data too few or too narrow: the relative squared error on"
            f" held-back rows is more than {BEYOND:g} times that on fitted rows, most at {worst}; give more rows, of all kinds in use"
        )
        return (told,)


def parse_repair(how: str) -> tuple[str, frozenset[str]]:
    """Return the row of REPAIRS and the rows of FURTHER of a repair such as "all+logits"; UsageError where one is unknown."""
    unknown = unknown_repair(how)
    if unknown:
        raise UsageError(unknown)
    first, *more = how.split("+")
    return first, frozenset(more)


def unknown_repair(how: str) -> str:
    """Return a sentence about what a repair names and no table has, "" where there is nothing."""
    first, *more = how.split("+")
    if first not in REPAIRS:
        return f"repair must be one of {', '.join(REPAIRS)}, got {first!r}"
    strange = next((name for name in more if name not in FURTHER), None)
    return f"repair may go on with +{', +'.join(FURTHER)}, got {strange!r}" if strange is not None else ""


def check_repair(program: Program, data: Calibration | None, how: str) -> None:
    """Raise UsageError, before a long search, where the data of a repair can't be split in two."""
    if data is not None and how != "none":
        data.split(HELD_BACK, program)


def repair(
    program: Program,
    slim: Program,
    selection: Selection,
    data: Calibration,
    how: str = "all",
    observe: Observe | None = None,
    moved: Collection[str] = (),
    takes: Callable[[str], bool] = lambda weight: True,
    prefixes: Prefixes | None = None,
) -> Repaired:
    """Re-fit the weights of `slim`, which is the program after a selection was applied; neither is changed.

    `how` is a row of REPAIRS, with rows of FURTHER behind a plus. `observe` gets (number of matrices done, number of all) before each
    matrix. `moved` names further nodes to re-fit as those that lost units are, because their result has changed for another reason (the
    matrix was factorised). `takes` says which weights may change.
    `prefixes` has values of the program from which those that lost units are re-fitted. UsageError where the data can't be split
    (`Calibration.split`).
    """
    first, further = parse_repair(how)
    if how == "none":
        return Repaired(slim, ())
    ridge, everywhere, _ = REPAIRS[first]
    removed = Cut.of(program, selection)
    before = Repaired(slim, ())
    if "logits" in further:
        program, before = _with_logits(program, slim, removed, data, takes)
    tasks = removed.tasks(program, before.program, everywhere, moved, further) if first != "none" else []
    tasks = [task for task in tasks if all(map(takes, task.map.weights))]
    if not tasks:
        return before
    if prefixes is None or prefixes.program is not program or everywhere or moved:
        prefixes = Prefixes(program, (), 0)
    named = f"{selection.to_json()} {how} {sorted(moved)}"
    new, done = _refitted(program, before.program, tasks, data, (ridge, observe, prefixes, named))
    slim = rebuild(before.program, copy_graph(before.program), new)
    return Repaired(slim, (*before.matrices, *done), before.refused)


def _with_logits(
    program: Program, slim: Program, removed: Cut, data: Calibration, takes: Callable[[str], bool]
) -> tuple[Program, Repaired]:
    """Return the original program with queries and keys in other bases, and the pruned one with what it keeps of them."""
    sites, refused = removed.logits()
    sites = [
        each for each in sites if takes(each[0].query.matrix.weight) and takes(each[0].key.matrix.weight)
    ]
    if not sites:
        return program, Repaired(slim, (), refused)
    fits = fit_logits(program, sites, *data.split(HELD_BACK, slim))
    found = [
        Refitted(each.site.query.matrix.weight, each.how, each.before, each.after, tuple(each.tensors))
        for each in fits
    ]
    new = {name: value for each in fits for name, value in each.tensors.items()}
    slim = rebuild(slim, copy_graph(slim), removed.tensors(new))
    return rebuild(program, copy_graph(program), new), Repaired(slim, tuple(found), refused)


def _refitted(
    program: Program,
    slim: Program,
    tasks: Sequence[FitTask],
    data: Calibration,
    what: tuple[bool, Observe | None, Prefixes, str],
) -> tuple[dict[str, Tensor], list[Refitted]]:
    """Return the new parameters by name, and the result for each task."""
    ridge, observe, prefixes, named = what
    fit, held = data.split(HELD_BACK, slim)
    shares = [own_share(part.batches) for part in (fit, held)]
    kept = _KeptFits(slim, named)
    new, done = kept.new, kept.done
    begun = len(done)
    lanes = [
        [_BatchRun(prefixes, slim, batch, tasks[begun:]) for batch in mine.values()] for mine, _ in shares
    ]
    with ActivationStore(live_limit(program)) as parking:
        for place, task in enumerate(tasks[begun:], begun):
            if observe:
                observe(place, len(tasks))
            shared = place > begun and task.map.reads_as(tasks[place - 1].map)
            if not shared:
                again = place + 1 < len(tasks) and tasks[place + 1].map.reads_as(task.map)
                # For this matrix and those behind it that read the same.
                inputs = InputSums(again, narrow=True), InputSums()
            sums, back = (Sums(each, known=shared) for each in inputs)
            for total, own, (_, split) in zip((sums, back), lanes, shares, strict=True):
                for lane in own:
                    with parking.out(lane.original, lane.pruned):
                        total.take(*lane.rows(task, new))
                if split:
                    add_up(total.sums())
            done.append(_fitted(slim, task, (sums, back, ridge), new))
            kept.write()
    return new, done


class _KeptFits:
    """The parameters that have been re-fitted, `new`, and the result of each task, `done`: at first those that a killed run has kept.

    They are written in parts, each with what was fitted since the last one, where it begins, and `what` is fitted: a plan that depends on
    measured times may be another one when the run goes on.
    """

    def __init__(self, slim: Program, what: str) -> None:
        self.new: dict[str, Tensor] = {}
        self.done: list[Refitted] = []
        self._what = hashlib.sha256(f"{what} {[each.name for each in fields(Refitted)]}".encode()).hexdigest()
        self._keeper, self._parts, self._written = keeper("refit"), 0, 0
        tensors = slim.tensors()
        while (found := self._keeper.read(self._part())) is not None:
            if (found[1]["what"], found[1]["begin"]) != (self._what, self._written):
                return
            self.new |= {name: parameter_like(tensors[name], value) for name, value in found[0].items()}
            self.done += [
                Refitted(**{**each, "tensors": tuple(each["tensors"])}) for each in found[1]["fits"]
            ]
            self._parts, self._written = self._parts + 1, len(self.done)

    def _part(self) -> str:
        return f"-part-{self._parts + 1}"

    def write(self) -> None:
        """Write what was fitted since the last part, where that is due."""
        if not self._keeper.is_due:
            return
        fits = self.done[self._written :]
        tensors = {name: self.new[name] for fit in fits for name in fit.tensors}
        numbers = {"what": self._what, "begin": self._written, "fits": [asdict(fit) for fit in fits]}
        self._keeper.write(1, (tensors, numbers), self._part())
        self._parts, self._written = self._parts + 1, len(self.done)


def _fitted(slim: Program, task: FitTask, what: tuple[Sums, Sums, bool], new: dict[str, Tensor]) -> Refitted:
    """Choose the best fit, and store its tensors in `new`."""
    (sums, held, ridge), tensors = what, slim.tensors()
    there = OnDevice(tensors) if sums.xy.device == compute_device() else tensors
    now = Fit(*task.map.read(there))
    fit, after, before = best(sums, held, now, ridge)
    for weight_name in task.map.weights:
        let_go(tensors[weight_name])
    name = task.map.weights[0]
    if not math.isfinite(before):
        raise UsageError(
            f"{name} can't be re-fitted: the error on the calibration data is {before}; give data like those of real use"
        )
    weight, bias = (
        (None if fit.weight is now.weight else fit.weight),
        (None if fit.bias is now.bias else fit.bias),
    )
    replaced = task.map.write(weight, bias, there)
    new |= {name: parameter_like(tensors[name], value) for name, value in replaced.items()}
    return Refitted(name, fit.how, before, after, tuple(replaced), sums.error(fit))


class _BatchRun:
    """One batch that runs through both programs in lockstep."""

    def __init__(
        self, prefixes: Prefixes, slim: Program, batch: dict[str, Tensor], tasks: Sequence[FitTask]
    ) -> None:
        program, targets = prefixes.program, [task.target for task in tasks]
        self.original = Runner(program, batch, targets, prefixes.start(program, batch))
        wanted = [node for task in tasks for node in (task.map.source, task.other) if node is not None]
        self.pruned = Runner(slim, batch, wanted, prefixes.start(slim, batch))

    def rows(self, task: FitTask, new: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return (the inputs of a map in the pruned program [rows, columns], the targets for its results [rows, outputs])."""
        target = self.original.reach(task.target, {})
        inputs = self.pruned.reach(task.map.source, new)
        target = task.cut(target)
        if task.other is not None:
            target = target - self.pruned.reach(task.other, new)
        check_range(repr(task.map.source.name), inputs)
        check_range(repr(task.target.name), target)
        return task.map.rows(inputs), task.map.results(target)
