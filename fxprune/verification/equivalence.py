"""Equivalence: prove that a shrunk program equals the original with the removed units' readers set to zero, or find what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxprune.analysis import Analysis, analyze
from fxprune.dims import Dim, Kept, changes, cut
from fxprune.errors import VerifyError
from fxprune.ir import (
    TOLERANCES,
    Program,
    Selection,
    copy_graph,
    difference,
    like,
    rebuild,
    run_example,
    source_line,
    tolerance,
)
from fxprune.ir.compare import relative_difference
from fxprune.ir.interpreter import every_value
from fxprune.rewrite import zero_readers
from fxprune.rewrite.apply import apply
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.shrink import kept_masks, shrink
from fxprune.verification.float64 import to_float64


@dataclass(frozen=True)
class Proof:
    """Result of a proof: `relative` is the largest difference of an output over its largest magnitude, on the example inputs.

    `bar` is the limit that it was held to. `exact` are the axes of the claim, `inexact` those left out of it; `change` is how
    much pruning moved the outputs (the same measure against the original), which shows that the claim is not empty. `refitted` are weights
    that were changed on purpose: the claim is about the program with their cut originals in their place.
    """

    relative: float
    bar: float
    exact: tuple[str, ...]
    inexact: tuple[str, ...]
    change: float
    refitted: tuple[str, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Return the proof as plain data for JSON; `change` is None where it is no number (the outputs shrank)."""
        return asdict(self) | {"change": self.change if math.isfinite(self.change) else None}


def verify(program: Program, slim: Program, selection: Selection, refitted: Sequence[str] = ()) -> Proof:
    """Prove a shrunk program against the zeroed original; VerifyError names the first node that differs in shape or value.

    Regions that the selection removes are bypassed in the original too: that is what their removal means. Inexact axes are no part of
    the claim: with them, equality is shown for the exact part of the selection, and `slim` must be what `shrink` gives for the whole.
    Weights named in `refitted` are first put back to what the selection leaves of the original's: all else must be equal. Where rounding
    takes the outputs of a deep program past the bar, both are compared in float64, with its bar.
    """
    before = dict(zip(program.named_outputs(), run_example(program), strict=True))
    moved: float | None = None
    if refitted and is_rigid(program):
        moved = difference(run_example(slim, program), list(before.values()))
    slim = _put_back(program, slim, selection, refitted)
    program, selection = bypass(program, selection.removed), replace(selection, removed=())
    analysis = analyze(program)
    exact = tuple(name for name in selection if analysis.axis(name).exact)
    inexact = tuple(name for name in selection if not analysis.axis(name).exact)
    claim = selection.only(set(exact))
    _check_examples(analysis, slim, selection)
    got = _outputs(slim, program)
    candidate = (shrink(program, claim), None) if inexact else (slim, got)
    relative, bar = _compare(analysis, zero_readers(program, claim), candidate, claim)
    if inexact:
        whole = shrink(program, selection)
        _compare(analyze(whole), whole, (slim, got), Selection())
    change = _change(analysis, before, got or [], selection) if moved is None else moved
    return Proof(relative, bar, exact, inexact, change, tuple(refitted))


def is_rigid(program: Program) -> bool:
    """Whether all inputs and outputs stay as they are."""
    return not (program.free_outputs or program.free_inputs or program.spare)


def _check_examples(analysis: Analysis, slim: Program, selection: Selection) -> None:
    """Raise VerifyError where the example of an input that may shrink is not the part of the original's that stays."""
    program = analysis.program
    if not program.free_inputs:
        return
    kept = kept_masks(analysis, selection)
    mine = dict(zip([node.name for node in slim.placeholders()], slim.flat_inputs(), strict=True))
    for node, value in zip(program.placeholders(), program.flat_inputs(), strict=True):
        if node.name in program.free_inputs:
            wanted = cut(value, analysis.flow.dims[node], kept)
            if not torch.equal(mine[node.name], wanted):
                raise VerifyError(
                    f"the example of input {node.name} is not the part that the selection leaves", node.name
                )


def _change(
    analysis: Analysis, before: Mapping[str, Tensor], got: list[Tensor], selection: Selection
) -> float:
    """Return how far pruning moved the outputs that are not spare; infinite where the number of outputs differs."""
    names, spare = list(analysis.program.named_outputs()), analysis.program.spare
    kept = [place for place, name in enumerate(names) if name not in spare]
    if len(got) != len(names):
        return float("inf")
    left = [before[name] if name in before else got[place] for place, name in enumerate(names)]
    expected = _shrunk_outputs(analysis, left, selection)
    return difference([got[place] for place in kept], [expected[place] for place in kept])


def _put_back(program: Program, slim: Program, selection: Selection, refitted: Sequence[str]) -> Program:
    """Return the slim program with the cut originals of its re-fitted weights; VerifyError where one has another shape or type."""
    if not refitted:
        return slim
    plain, mine = apply(program, selection).tensors(), slim.tensors()
    back: dict[str, Tensor] = {}
    for name in refitted:
        one = mine[name]
        other = plain.get(name, torch.zeros_like(one))  # a bias that was added is put back to zero
        if one.shape != other.shape or one.dtype != other.dtype:
            raise VerifyError(
                f"{name} was re-fitted to {tuple(one.shape)} {one.dtype}; the selection leaves {tuple(other.shape)} {other.dtype}",
                None,
            )
        back[name] = like(one, other.detach())
    return rebuild(slim, copy_graph(slim), back)


def _outputs(slim: Program, program: Program) -> list[Tensor] | None:
    """Return the outputs; None where the program does not run (the first faulty node is searched for afterwards)."""
    try:
        return run_example(slim, program)
    except RuntimeError:
        return None


def _compare(
    analysis: Analysis, oracle: Program, candidate: tuple[Program, list[Tensor] | None], claim: Selection
) -> tuple[float, float]:
    expected = _shrunk_outputs(analysis, run_example(oracle), claim)
    got = candidate[1] if candidate[1] is not None else _outputs(candidate[0], oracle)
    bar = tolerance(expected)
    relative = difference(got, expected) if got is not None else float("inf")
    if relative <= bar:
        return relative, bar
    exact = _in_doubles(analysis, oracle, candidate[0], claim)
    if exact <= TOLERANCES[torch.float64] < bar:
        return exact, TOLERANCES[torch.float64]
    raise _first_difference(analysis, oracle, candidate[0], claim, (relative, bar))


def _in_doubles(analysis: Analysis, oracle: Program, candidate: Program, claim: Selection) -> float:
    """Return the difference in float64, where rounding of a deep program can't hide a fault; infinite where it can't run in float64."""
    try:
        source = to_float64(oracle)
        got = run_example(to_float64(candidate), source)
        expected = _shrunk_outputs(analysis, run_example(source), claim)
    except (RuntimeError, VerifyError):
        return float("inf")
    return difference(got, expected)


def _shrunk_outputs(analysis: Analysis, outputs: list[Tensor], claim: Selection) -> list[Tensor]:
    """Return the oracle's outputs; of those that may shrink, the part that stays."""
    if not analysis.program.free_outputs:
        return outputs
    kept = kept_masks(analysis, claim)
    pairs = zip(analysis.program.named_outputs().values(), outputs, strict=True)
    return [_kept_part(analysis.flow.dims[node], value, kept) for node, value in pairs]


def _first_difference(
    analysis: Analysis, oracle: Program, candidate: Program, claim: Selection, gap: tuple[float, float]
) -> VerifyError:
    kept = kept_masks(analysis, claim)
    values = dict(every_value(candidate, oracle))
    dims = {node.name: analysis.flow.dims.get(node) for node in analysis.program.graph.nodes}
    nodes = {node.name: node for node in candidate.graph.nodes}
    for name, expected in every_value(oracle, oracle):
        if name in values and isinstance(expected, Tensor):
            fault = _fault(expected, values[name], _kept_part(dims.get(name), expected, kept), gap[1])
            if fault:
                where = source_line(nodes[name])
                place = f" [{where}]" if where else ""
                return VerifyError(f"{name} = {nodes[name].target}: {fault}{place}", name)
    return VerifyError(
        f"the outputs differ by {gap[0]:.3g} (allowed {gap[1]:.0e}), though every common node agrees", None
    )


def _kept_part(dims: Any, expected: Tensor, kept: Kept) -> Tensor:
    """Return the part of the oracle's value that the shrunk program should contain."""
    if not dims or not all(isinstance(dim, Dim) for dim in dims) or len(dims) != expected.dim():
        return expected
    if any(changes(dim, kept) and dim.size != size for dim, size in zip(dims, expected.shape, strict=True)):
        return expected
    return cut(expected, dims, kept)


def _fault(whole: Tensor, got: Any, expected: Tensor, bar: float) -> str:
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        found = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        return f"shape {found}, expected {tuple(expected.shape)} (of {tuple(whole.shape)})"
    gap = relative_difference(got, expected)
    return f"its value differs by {gap:.3g} relative (allowed {bar:.0e})" if not gap <= bar else ""
