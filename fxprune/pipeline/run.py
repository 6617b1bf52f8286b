"""Run passes in order, and prove what they did."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fxprune.errors import FxpruneError, PassError
from fxprune.ir import Program, Selection
from fxprune.pipeline.base import Outcome, Pass
from fxprune.verification import Claim, Proof
from fxprune.verification.claims import prove_claims


@dataclass(frozen=True)
class Step:
    """Record of one pass: its text, seconds, axes cut, parameters before and after, a note where nothing was done, and its own details."""

    text: str
    seconds: float
    axes: int
    parameters: tuple[int, int]
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Result of a pipeline: the program, and the selection that leads there, in indices of the original.

    Weights that a pass re-fitted are named in `refitted`: they are not those of the original, all others are. Where a pass has replaced
    matrices by factors, no selection alone leads there: `claims` then has one entry for each part of the pipeline.
    """

    program: Program
    selection: Selection
    steps: tuple[Step, ...]
    refitted: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    def prove(self, original: Program) -> Proof:
        """Prove every claim; VerifyError names what differs."""
        whole = Claim(original, self.program, self.selection, self.refitted)
        return prove_claims(original, self.claims or [whole])


@dataclass(frozen=True)
class Pipeline:
    """Passes in order."""

    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        return ", ".join(str(each) for each in self.passes)

    def run(self, program: Program, observe: Callable[[str, int, int], None] | None = None) -> Result:
        """Run the passes; `observe(text, index, count)` is called before each, and PassError names the pass that failed, and why."""
        steps, claims = list[Step](), [Claim(program, program)]
        for index, each in enumerate(self.passes):
            if observe:
                observe(str(each), index, len(self.passes))
            outcome, step = self._step(program, index)
            if outcome.factors:
                made = Claim(program, outcome.program, Selection(), outcome.refitted, outcome.factors)
                claims += [made, Claim(outcome.program, outcome.program)]
            else:
                claims[-1] = claims[-1].then(outcome.program, outcome.selection, outcome.refitted)
            program = outcome.program
            steps.append(step)
        refitted = dict.fromkeys(name for claim in claims for name in claim.refitted)
        several = tuple(claim for claim in claims if not claim.is_idle) if len(claims) > 1 else ()
        return Result(program, claims[0].selection, tuple(steps), tuple(refitted), several)

    def _step(self, program: Program, index: int) -> tuple[Outcome, Step]:
        each, start = self.passes[index], time.perf_counter()
        try:
            outcome = each.run(program)
        except FxpruneError as error:
            done = ", ".join(str(p) for p in self.passes[:index])
            raise PassError(f"{each}{', after ' + done if done else ''}: {error}") from error
        part, counts = outcome.selection, (program.parameter_count(), outcome.program.parameter_count())
        idle = not (len(part) or part.removed or each.preserves or outcome.refitted or outcome.factors)
        note = "found nothing to remove" if idle else ""
        return outcome, Step(str(each), time.perf_counter() - start, len(part), counts, note, outcome.details)
