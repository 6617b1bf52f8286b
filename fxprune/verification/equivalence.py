"""Equivalence: prove that a shrunk program equals the original with the removed units zeroed or never chosen, or find what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fxprune.analysis import Analysis, analyze
from fxprune.dims import Dim, Kept, changes, cut
from fxprune.errors import VerifyError
from fxprune.ir import (
    Program,
    Selection,
    copy_graph,
    difference,
    like,
    rebuild,
    run_example,
    source_line,
)
from fxprune.ir.compare import OutputAgreement, compare_outputs, every_value, moved_by, relative_difference
from fxprune.rewrite import zero_readers
from fxprune.rewrite.apply import apply
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.shrink import kept_masks, shrink
from fxprune.verification.float64 import rounding_noise, to_float64
from fxprune.verification.inputs import input_variants, with_inputs_of
from fxprune.verification.random_values import fix_random


@dataclass(frozen=True)
class Proof:
    """Result of a proof: *equal*, or *nothing proven* with the reason; a difference is a VerifyError.

    `relative` is the largest difference of an output over its scale (`fxprune.ir.compare.scale_of`), and `bar` the limit that it was held
    to, over `inputs` inputs: the example, and others that were made from it. `exact` are the axes of the claim, `inexact` those left out
    of it; the removed units of those that are `chosen` are never chosen in the original, those of the others are zeroed. `moves` says for
    each axis of the claim how far the outputs move without its removed units, and `change` how far pruning moved them in all
    (`fxprune.ir.compare.moved_by`): these show that the claim is not empty. `refitted` are weights that were changed on purpose: the claim
    is about the program with their cut originals in their place. `why` is the reason where nothing is proven. `in_model` is the largest
    difference of the model that islands lie in, run as the user runs it, with slim and with zeroed islands; None where there is none.
    """

    relative: float
    bar: float
    exact: tuple[str, ...]
    inexact: tuple[str, ...]
    change: float
    refitted: tuple[str, ...] = ()
    moves: Mapping[str, float] = field(default_factory=dict)
    inputs: int = 1
    why: str = ""
    chosen: tuple[str, ...] = ()
    in_model: float | None = None

    @property
    def status(self) -> str:
        """`equal` or `nothing proven`."""
        return "nothing proven" if self.why else "equal"

    @property
    def against(self) -> str:
        """What the slim program was compared with: the original with the removed units zeroed, or never chosen, or some each."""
        both = "zeroed or never chosen" if len(self.chosen) < len(self.exact) else "never chosen"
        return f"original with units {both}" if self.chosen else "zeroed original"

    @property
    def unmoved(self) -> tuple[str, ...]:
        """The axes of the claim whose removed units move no output on any of the inputs."""
        return tuple(name for name, move in self.moves.items() if move == 0)

    def require(self) -> Proof:
        """Return the proof; VerifyError where nothing is proven, with the reason."""
        if self.why:
            raise VerifyError(f"nothing proven: {self.why}")
        return self

    def as_data(self) -> dict[str, Any]:
        """Return the proof as plain data for JSON; what is no finite number (`change`, where the outputs shrank) is None."""
        moves = {name: move if math.isfinite(move) else None for name, move in self.moves.items()}
        change = self.change if math.isfinite(self.change) else None
        return asdict(self) | {
            "moves": moves,
            "change": change,
            "status": self.status,
            "against": self.against,
        }


def verify(
    program: Program,
    slim: Program,
    selection: Selection,
    refitted: Sequence[str] = (),
    unchanged: bool = False,
) -> Proof:
    """Prove a shrunk program against the original with the removed units zeroed, or never chosen.

    VerifyError names the first node that differs in shape or value.
    Regions that the selection removes are bypassed in the original too: that is what their removal means. Inexact axes are no part of
    the claim: with them, equality is shown for the exact part of the selection, and `slim` must be what `shrink` gives for the whole.
    Weights named in `refitted` are first put back to what the selection leaves of the original's: all else must be equal. All is compared
    on the example inputs and on others made from it. Where rounding takes the outputs of a deep program past the bar, both are compared
    in float64, with its bar. Random values are the same on both sides. The proof says where all this shows nothing; with `unchanged`, what
    was removed is meant to have had no effect.
    """
    before = dict(zip(program.named_outputs(), run_example(program), strict=True))
    moved: float | None = None
    if refitted and is_rigid(program):
        moved = moved_by(run_example(slim, program), list(before.values()))
    slim = _put_back(program, slim, selection, refitted)
    removed = selection.removed
    program, selection = bypass(program, removed), replace(selection, removed=())
    program, slim, why = fix_random(program, slim, selection)
    analysis = analyze(program)
    exact = tuple(name for name in selection if analysis.axis(name).exact)
    inexact = tuple(name for name in selection if not analysis.axis(name).exact)
    chosen = tuple(name for name in exact if analysis.axis(name).choices)
    if why:
        return Proof(math.nan, 0.0, exact, inexact, math.nan, tuple(refitted), why=why, chosen=chosen)
    claim = selection.only(set(exact))
    _check_examples(analysis, slim, selection)
    candidate = shrink(program, claim) if inexact else slim
    variants = input_variants(program)
    oracle = zero_readers(program, claim)
    found = [_compare(analysis, with_inputs_of(oracle, each), candidate, claim) for each in variants]
    if inexact:
        whole = shrink(program, selection)
        for each in variants:
            _compare(analyze(whole), with_inputs_of(whole, each), slim, Selection())
    got = _outputs(slim, program) or []
    change = _change(analysis, before, got, selection) if moved is None else moved
    plain = [(each, run_example(each)) for each in variants] if exact else []
    moves = {name: _move(zero_readers(program, claim.only({name})), plain) for name in exact}
    worst = max(found, key=lambda each: each.relative / max(each.bar, 1e-300))
    compared = sum(each.compared for each in found)
    why = _why_nothing(compared, {} if unchanged else moves, bool(removed), change)
    figures = (worst.relative, worst.bar, exact, inexact, change, tuple(refitted), moves, len(variants))
    return Proof(*figures, why, chosen)


def _move(zeroed: Program, plain: Sequence[tuple[Program, list[Tensor]]]) -> float:
    """Return how far the outputs move without the removed units of one axis, on the first inputs on which they do."""
    moves = (difference(run_example(with_inputs_of(zeroed, each)), before) for each, before in plain)
    return next((move for move in moves if move > 0), 0.0)


def _why_nothing(compared: int, moves: Mapping[str, float], bypassed: bool, change: float) -> str:
    """Return why a comparison that found no difference shows nothing; "" where it does show something."""
    if not compared:
        return "no output has a finite floating number to compare: give other example inputs, or outputs that are floating"
    if moves and not any(moves.values()) and not (bypassed and change > 0):
        names = list(moves)
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return (
            f"no output moves without the removed units of {few} on these inputs: give other example inputs"
        )
    if bypassed and not moves and change == 0:
        return "no output moves without what was bypassed on these inputs: give other example inputs"
    return ""


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
    return moved_by([got[place] for place in kept], [expected[place] for place in kept])


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


def _compare(analysis: Analysis, oracle: Program, candidate: Program, claim: Selection) -> OutputAgreement:
    """Compare a candidate with the oracle on the oracle's inputs; VerifyError where they differ by more than rounding."""
    expected = _shrunk_outputs(analysis, run_example(oracle), claim)
    got = _outputs(candidate, oracle)
    found = compare_outputs(got, expected) if got is not None else OutputAgreement(math.inf, 0.0, 0)
    if found.holds:
        return found
    exact = _in_doubles(analysis, oracle, candidate, claim)
    if exact is not None and exact.holds:
        return exact
    raise _first_difference(analysis, oracle, candidate, claim, found)


def _in_doubles(
    analysis: Analysis, oracle: Program, candidate: Program, claim: Selection
) -> OutputAgreement | None:
    """Compare in float64, where rounding of a deep program can't hide a fault; None where it can't run in float64.

    A difference that weights moved by a rounding step make as well is noise.
    """
    try:
        source = to_float64(oracle)
        got = run_example(to_float64(candidate), source)
        outputs = run_example(source)
        expected = _shrunk_outputs(analysis, outputs, claim)
        found = compare_outputs(got, expected)
        if found.holds or not math.isfinite(found.relative):
            return found
        steps = rounding_noise(source, outputs)
        return compare_outputs(got, expected, _shrunk_outputs(analysis, steps, claim))
    except (RuntimeError, VerifyError):
        return None


def _shrunk_outputs(analysis: Analysis, outputs: list[Tensor], claim: Selection) -> list[Tensor]:
    """Return the oracle's outputs; of those that may shrink, the part that stays."""
    if not analysis.program.free_outputs:
        return outputs
    kept = kept_masks(analysis, claim)
    pairs = zip(analysis.program.named_outputs().values(), outputs, strict=True)
    return [_kept_part(analysis.flow.dims[node], value, kept) for node, value in pairs]


def _first_difference(
    analysis: Analysis, oracle: Program, candidate: Program, claim: Selection, found: OutputAgreement
) -> VerifyError:
    kept = kept_masks(analysis, claim)
    values = dict(every_value(candidate, oracle))
    dims = {node.name: analysis.flow.dims.get(node) for node in analysis.program.graph.nodes}
    nodes = {node.name: node for node in candidate.graph.nodes}
    for name, expected in every_value(oracle, oracle):
        if name in values and isinstance(expected, Tensor):
            fault = _fault(expected, values[name], _kept_part(dims.get(name), expected, kept), found.bar)
            if fault:
                where = source_line(nodes[name])
                place = f" [{where}]" if where else ""
                return VerifyError(f"{name} = {nodes[name].target}: {fault}{place}", name)
    return VerifyError(
        f"the outputs differ by {found.relative:.3g} (allowed {found.bar:.0e}), though every common node agrees",
        None,
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
