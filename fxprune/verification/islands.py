"""Islands in their model: the user's own model, run eagerly, must say the same with slim islands as with zeroed ones."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fxprune.analysis import analyze
from fxprune.errors import VerifyError
from fxprune.frontend.agreement import is_random, outputs_on
from fxprune.ir import Program, Selection
from fxprune.ir.compare import OutputAgreement, compare_outputs
from fxprune.rewrite import zero_readers
from fxprune.rewrite.bypass import bypass
from fxprune.rewrite.islands import in_model
from fxprune.rewrite.shrink import shrink


def model_agreement(
    program: Program, slim: Program, selection: Selection, plain: bool
) -> OutputAgreement | None:
    """Compare the model of a program's islands, with the islands slim and with the removed units zeroed, on its example inputs.

    Regions are bypassed in both, and of inexact axes nothing is compared; `plain` says that `slim` has the weights that the selection
    leaves, else it is only run. None where the model draws at random, or nothing exact was removed. VerifyError where it can't run, or
    differs.
    """
    islands = program.islands
    assert islands is not None
    inputs = islands.args, islands.kwargs
    if is_random(outputs_on(islands.model, inputs), outputs_on(islands.model, inputs, 1)):
        return None
    got = run_in_model(slim)
    before, units = bypass(program, selection.removed), replace(selection, removed=())
    exact = {name for name in units if analyze(before).axis(name).exact}
    if not exact:
        return None
    claim = units.only(exact)
    if not plain or len(exact) < len(units):
        got = run_in_model(shrink(before, claim))
    found = compare_outputs(got, run_in_model(zero_readers(before, claim)))
    if not found.holds:
        raise VerifyError(
            f"{type(islands.model).__name__} differs by {found.relative:.2g} (allowed {found.bar:.0e}) with slim parts in place from itself"
            " with zeroed ones: its own code may decide on values that are nearly equal (a maximum, a threshold)"
        )
    return found


def run_in_model(program: Program) -> list[Tensor]:
    """Return the outputs of the model that a program's islands lie in, with these in place; VerifyError where it can't run."""
    islands = program.islands
    assert islands is not None
    try:
        return outputs_on(in_model(program), (islands.args, islands.kwargs))
    except Exception as error:
        raise VerifyError(
            f"{type(islands.model).__name__} can't run with its captured parts in place: {type(error).__name__}: {error}"
        ) from error
