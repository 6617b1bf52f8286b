"""Claims: the changes that a pipeline made, part by part, in a form that can be proved.

A part ends where matrices become factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fxprune.analysis import analyze
from fxprune.errors import VerifyError
from fxprune.ir import Program, Selection, run_example
from fxprune.ir.compare import compare_outputs, moved_by
from fxprune.rewrite.merge_factors import merge_factors
from fxprune.verification.equivalence import Proof, is_rigid, verify
from fxprune.verification.islands import model_agreement


@dataclass(frozen=True, eq=False)
class Claim:
    """Program before and after: the selection, the weights that were re-fitted, and those that were replaced by two (with their names).

    `proof` is one that was made already. Where the program was `trained`, it is of what was lowered against what was trained: that is all
    that can be proved.
    """

    before: Program
    after: Program
    selection: Selection = field(default_factory=Selection)
    refitted: tuple[str, ...] = ()
    factors: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    proof: Proof | None = None
    trained: bool = False
    unchanged: bool = True  #: no pass of this part is meant to change an output

    @property
    def is_idle(self) -> bool:
        """Whether nothing was done."""
        return self.after is self.before

    def then(
        self, after: Program, selection: Selection, refitted: Sequence[str], unchanged: bool = False
    ) -> Claim:
        """Return this claim extended by one more pass; `unchanged`: it is meant to change no output."""
        both = self.selection.compose(selection)
        if selection.removed:
            both = _of_what_is_left(self.before, after, both)
        names = tuple(dict.fromkeys((*self.refitted, *refitted)))
        return Claim(self.before, after, both, names, self.factors, unchanged=self.unchanged and unchanged)

    def prove(self) -> Proof:
        """Prove that the program after equals the one before without what was removed; VerifyError names what differs.

        Factors are multiplied first: the program must compute the same with their products, and these count as re-fitted weights.
        """
        if self.proof:
            return self.proof
        if not self.factors:
            return verify(self.before, self.after, self.selection, self.refitted, self.unchanged)
        own = {name for names in self.factors.values() for name in names}
        whole = merge_factors(self.after, lambda pair: own.issuperset(pair.weights))
        found = compare_outputs(run_example(self.after, self.before), run_example(whole, self.before))
        if not found.holds:
            raise VerifyError(
                f"the factors and their products differ by {found.relative:.1e}; the bar is {found.bar:.0e}"
            )
        refitted = (*self.refitted, *(name for name in self.factors if name in whole.tensors()))
        proof = verify(self.before, whole, self.selection, refitted, unchanged=True)
        return replace(proof, relative=max(found.relative, proof.relative))


def prove_claims(original: Program, claims: Sequence[Claim]) -> Proof:
    """Prove all claims, and return one proof; its `change` is that of the whole, and it is one only where each claim is.

    Where the program is of islands, the model that they lie in is compared, too.
    """
    proof = _all_proven(original, claims)
    if original.islands is None:
        return proof
    found = [
        model_agreement(each.before, each.after, each.selection, not (each.refitted or each.factors))
        for each in claims
        if not each.trained
    ]
    return replace(proof, in_model=max((each.relative for each in found if each), default=None))


def _all_proven(original: Program, claims: Sequence[Claim]) -> Proof:
    proofs = [claim.prove() for claim in claims]
    if len(proofs) == 1:
        return proofs[0]
    first, last = run_example(original), run_example(claims[-1].after, original)
    lists = {
        name: tuple(dict.fromkeys(each for proof in proofs for each in getattr(proof, name)))
        for name in ("exact", "inexact", "refitted", "chosen")
    }
    worst = max(proofs, key=lambda proof: proof.relative / max(proof.bar, 1e-300))
    return Proof(
        worst.relative,
        worst.bar,
        lists["exact"],
        lists["inexact"],
        moved_by(last, first) if is_rigid(original) else math.nan,
        lists["refitted"],
        {name: move for proof in proofs for name, move in proof.moves.items()},
        min(proof.inputs for proof in proofs),
        next((proof.why for proof in proofs if proof.why), ""),
        lists["chosen"],
    )


def _of_what_is_left(original: Program, program: Program, selection: Selection) -> Selection:
    """Return the selection without the axes all of whose parameters were removed with their regions."""
    left = program.tensors().keys()
    axes = [axis for axis in analyze(original).axes if axis.name in selection]
    gone = {axis.name for axis in axes if not any(member.name in left for member in axis.members)}
    return selection.only(set(selection) - gone)
