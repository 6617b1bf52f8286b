"""Weight re-fitting: after removal, re-fit the matrices one after another along the graph, each to the values of the original program.

The pruned and the original program run in lockstep over the calibration data; each matrix is fitted on the inputs that the already
re-fitted part of the pruned program gives it (K-prune, arXiv 2308.03449). Where the result of a matrix goes into a residual sum, the target
is the sum in the original program, so that the fit also corrects the error that the residual stream has accumulated so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis import Analysis, Matrix, analyze, matrices
from fxprune.calibration.data import Calibration
from fxprune.calibration.least_squares import Fit, Sums, best
from fxprune.calibration.lockstep import ActivationStore, Runner
from fxprune.calibration.validation import check_range
from fxprune.dims import Kept, changes, cut
from fxprune.errors import UsageError
from fxprune.ir import Program, Selection, attribute, bind, copy_graph, rebuild
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.shrink import kept_masks
from fxprune.rules.traits import is_idle_dropout

aten = torch.ops.aten

HELD_BACK = 1 / 8
"""Share of the calibration data that is held back to compare fits."""

LIVE = 0.5
"""Memory for values that wait for the next matrix, as a share of the size of the parameters; further values lie on disk."""

#: name: (whether weights are re-fitted, whether matrices that lost nothing are re-fitted as well, description)
REPAIRS: dict[str, tuple[bool, bool, str]] = {
    "none": (False, False, "nothing"),
    "mean": (False, False, "the mean of what a reader lost goes into its bias (FLAP)"),
    "readers": (True, False, "ridge least squares for the matrices that read removed units"),
    "all": (True, True, "the same for every matrix, for what it reads has moved as well"),
}

Observe = Callable[[int, int], None]


@dataclass(frozen=True)
class Refitted:
    """Result of re-fitting one matrix: its parameter, the chosen fit, the relative squared error on held-back rows before and after.

    `tensors` are the parameters that were replaced.
    """

    name: str
    how: str
    before: float
    after: float
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Repaired:
    """The re-fitted program, and the result for each matrix in graph order."""

    program: Program
    matrices: tuple[Refitted, ...]

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the parameters that were replaced."""
        return tuple(name for entry in self.matrices for name in entry.tensors)


@dataclass(frozen=True, eq=False)
class _Task:
    """A matrix of the pruned program, the value of the original program to fit it to, and the other addend where that is a residual sum.

    `cut` removes the pruned units from the original's value.
    """

    matrix: Matrix
    target: fx.Node
    other: fx.Node | None
    cut: Callable[[Tensor], Tensor]


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
) -> Repaired:
    """Re-fit the matrices of `slim`, which is the program after a selection was applied; neither is changed.

    `how` is a row of REPAIRS. `observe` gets (number of matrices done, number of all) before each matrix. `moved` names further nodes to
    re-fit as those that lost units are, because their result has changed for another reason (the matrix was factorised). `takes` says
    which weights may change. UsageError where the data can't be split (`Calibration.split`).
    """
    ridge, everywhere, _ = REPAIRS[how]
    tasks = _tasks(program, slim, selection, everywhere, moved) if how != "none" else []
    tasks = [task for task in tasks if takes(task.matrix.weight)]
    if not tasks:
        return Repaired(slim, ())
    fit, held = data.split(HELD_BACK, slim)
    lanes = [_BatchRun(program, slim, batch, tasks) for batch in (*fit.batches, *held.batches)]
    new: dict[str, Tensor] = {}
    done: list[Refitted] = []
    with ActivationStore(int(LIVE * program.parameter_bytes())) as parking:
        for place, task in enumerate(tasks):
            if observe:
                observe(place, len(tasks))
            sums, back = Sums(), Sums()
            for i, lane in enumerate(lanes):
                with parking.out(lane.original, lane.pruned):
                    (sums if i < len(fit.batches) else back).take(*lane.rows(task, new))
            done.append(_fitted(slim, task, (sums, back, ridge), new))
    return Repaired(rebuild(slim, copy_graph(slim), new), tuple(done))


def _tasks(
    program: Program, slim: Program, selection: Selection, everywhere: bool, moved: Collection[str]
) -> list[_Task]:
    analysis = analyze(bypass(program, selection.removed))
    kept = kept_masks(analysis, replace(selection, removed=(), model=""))
    before = matrices(analysis.program, analysis.flow)
    after = matrices(slim, analyze(slim).flow)
    nodes = {node.name: node for node in program.graph.nodes}
    order = {node: i for i, node in enumerate(slim.graph.nodes)}
    lost = {c.node.name for c in analysis.flow.contractions if changes(c.dim, kept)} | set(moved)
    tasks = []
    for name, matrix in after.items():
        wanted = name in before and (everywhere or name in lost)
        if wanted and _is_cut_alike(analysis, before[name].node, kept):
            met, other = _residual_sum(matrix.node, order)
            target, other = (nodes[met.name], other) if met.name in nodes else (nodes[name], None)
            dims = analysis.flow.dims[before[name].node]
            tasks.append(_Task(matrix, target, other, partial(cut, dims=dims, kept=kept)))
    return tasks


def _is_cut_alike(analysis: Analysis, node: fx.Node, kept: Kept) -> bool:
    """Return whether the dimensions of a value that lose units have the same size in all batches."""
    pairs = zip(node.meta["val"].shape, analysis.flow.dims[node], strict=True)
    return all(isinstance(size, int) for size, dim in pairs if changes(dim, kept))


def _residual_sum(node: fx.Node, order: Mapping[fx.Node, int]) -> tuple[fx.Node, fx.Node | None]:
    """Return (the residual sum that alone reads the result of a matrix, the other addend); (the node itself, None) where there is none."""
    current = node
    while len(current.users) == 1:
        user = next(iter(current.users))
        if is_idle_dropout(user):
            current = user
            continue
        if user.target not in (aten.add.Tensor, aten.add_.Tensor) or bind(user)["alpha"].value != 1:
            break
        others = [arg for arg in user.args if isinstance(arg, fx.Node) and arg is not current]
        known = [other for other in others if other.op != "get_attr" and order[other] < order[node]]
        ready = [other for other in known if _shape(other) == _shape(node)]
        return (user, ready[0]) if ready else (node, None)
    return node, None


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _fitted(slim: Program, task: _Task, what: tuple[Sums, Sums, bool], new: dict[str, Tensor]) -> Refitted:
    """Choose the best fit, and store its tensors in `new`."""
    matrix, (sums, held, ridge) = task.matrix, what
    weight = attribute(slim.graph_module, matrix.weight)
    bias = attribute(slim.graph_module, matrix.bias) if matrix.bias else None
    wide = None if bias is None else bias.detach().to(torch.float64)
    now = Fit(matrix.read(weight).detach().to(torch.float64), wide)
    fit, after, before = best(sums, held, now, ridge)
    if not math.isfinite(before):
        raise UsageError(
            f"{matrix.weight} can't be re-fitted: the error on the calibration data is {before}; give data like those of real use"
        )
    replaced: dict[str, Tensor] = {}
    if fit.weight is not now.weight:
        replaced[matrix.weight] = matrix.write(fit.weight, weight)
    if bias is not None and fit.bias is not None and fit.bias is not now.bias:
        replaced[matrix.bias] = torch.nn.Parameter(fit.bias.to(bias.dtype), bias.requires_grad)
    new |= replaced
    return Refitted(matrix.weight, fit.how, before, after, tuple(replaced))


class _BatchRun:
    """One batch that runs through both programs in lockstep."""

    def __init__(
        self, program: Program, slim: Program, batch: dict[str, Tensor], tasks: Sequence[_Task]
    ) -> None:
        self.original = Runner(program, batch, [task.target for task in tasks])
        wanted = [node for task in tasks for node in (task.matrix.source, task.other) if node is not None]
        self.pruned = Runner(slim, batch, wanted)

    def rows(self, task: _Task, new: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return (the inputs of a matrix in the pruned program [rows, columns], the targets for its results [rows, outputs])."""
        target = self.original.reach(task.target, {})
        inputs = self.pruned.reach(task.matrix.source, new)
        target = task.cut(target)
        if task.other is not None:
            target = target - self.pruned.reach(task.other, new)
        check_range(repr(task.matrix.source.name), inputs)
        check_range(repr(task.target.name), target)
        return task.matrix.rows(inputs), task.matrix.results(target)
