"""Run passes in order, and prove what they did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.calibration import Calibration
from fxprune.calibration.memory import memory_need
from fxprune.cost.run_time import duration_text, run_work, total_work
from fxprune.errors import FxpruneError, PassError, UsageError
from fxprune.ir import HasSummary, Program, Selection, Summary, quantity
from fxprune.ir.edit import on_disk
from fxprune.pipeline.base import Outcome, Pass
from fxprune.pipeline.context import EMPTY, Context, Progress
from fxprune.pipeline.kept_outcomes import run_or_resume
from fxprune.pipeline.report import describe_costs, save_folder
from fxprune.rewrite.islands import in_model
from fxprune.storage.devices import computing_on
from fxprune.storage.limits import needs_disk
from fxprune.training.devices import check_device
from fxprune.verification import Claim, Proof
from fxprune.verification.claims import prove_claims

NOTHING = "found nothing to remove"


@dataclass(frozen=True)
class Step:
    """Record of one pass: its text, seconds, axes cut, parameters before and after, a note where it did nothing, its details, remarks."""

    text: str
    seconds: float
    axes: int
    parameters: tuple[int, int]
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Result(HasSummary):
    """Result of a pipeline: the program, and the selection that leads there, in indices of the original.

    Weights that a pass re-fitted are named in `refitted`: they are not those of the original, all others are. Where a pass has replaced
    matrices by factors, or has trained, no selection alone leads there: `claims` then has one entry for each part of the pipeline.
    """

    original: Program
    program: Program
    selection: Selection
    steps: tuple[Step, ...] = ()
    refitted: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def is_selected(self) -> bool:
        """Whether the selection leads to the program, but for weights that were re-fitted: nothing made factors, nothing trained."""
        return len(self.claims) <= 1 and not any(claim.factors or claim.trained for claim in self.claims)

    @cached_property
    def proof(self) -> Proof:
        """The proof of every claim, made when it is first asked for; VerifyError names what differs."""
        whole = Claim(self.original, self.program, self.selection, self.refitted)
        return prove_claims(self.original, self.claims or (whole,))

    @cached_property
    def module(self) -> nn.Module:
        """The program as an nn.Module: same call and output type as the original, trainable, independent of all else.

        Of a program with islands it is a copy of the model that they lie in, with the smaller islands in place.
        """
        return in_model(self.program)

    @cached_property
    def report(self) -> dict[str, Any]:
        """Plain data on the run: the steps, parameters, bytes and operations before and after, and the proof."""
        steps = [asdict(step) for step in self.steps]
        text = ", ".join(step.text for step in self.steps)
        costs = describe_costs(self.original, self.program, self.proof)
        return {"format": "fxprune.result/1", "pipeline": text, "steps": steps, **costs}

    def summary(self) -> Summary:
        """Return the passes with the parameters that each left, and the proof."""
        counts = [step.parameters for step in self.steps]
        before, after = self.original.parameter_count(), self.program.parameter_count()
        rows = tuple(
            (
                step.text,
                f"{step.axes}",
                f"{left:,}",
                f"{step.seconds:.1f} s",
                "; ".join(filter(None, (step.note, *step.remarks))),
            )
            for step, (_, left) in zip(self.steps, counts, strict=True)
        )
        proof = self.proof
        over = quantity(len(proof.exact), "exact axis", "exact axes")
        note = f"largest relative difference {proof.relative:.1e} (allowed {proof.bar:.0e}), over {over}"
        title = f"{before:,} parameters became {after:,} ({before / max(1, after):.2f}×)"
        return Summary(title, ("pass", "axes", "parameters left", "time", ""), rows, (note,))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write model.onnx, model.pt2, selection.json and report.json to a folder, and return it; nothing that is not proven.

        UsageError where one of them exists, unless `overwrite`.
        """
        return save_folder(self.program, self.selection, self.report, Path(folder), overwrite)


@dataclass(frozen=True)
class Pipeline:
    """Passes in order."""

    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        return ", ".join(str(each) for each in self.passes)

    def expanded(self) -> Pipeline:
        """Return the pipeline with each pass that stands for several replaced by these."""
        return Pipeline(tuple(own for each in self.passes for own in each.expanded()))

    def uses(self, name: str) -> bool:
        """Return whether some pass takes a field of the context."""
        return any(name in each.uses for each in self.passes)

    def check(self, context: Context) -> None:
        """Raise UsageError where a pass lacks something that the context must supply."""
        for each in self.passes:
            each.check(context)

    def run(self, program: Program, context: Context = EMPTY) -> Result:
        """Run the passes; PassError names the pass that failed, and why, UsageError what the context lacks, before anything runs."""
        if self.expanded() != self:
            return self.expanded().run(program, context)
        self.check(context)
        if program.islands and self.uses("task"):
            raise UsageError(
                "passes that train need the whole model as one graph; this one was captured in parts"
            )
        for each in self.passes:
            each.check_program(program)
        program = on_disk(program) if needs_disk(program.parameter_bytes()) else program
        context = context.checked(program)
        for each in self.passes:
            each.check_data(program, context)
        if self.uses("data") and context.data is not None:
            _tell_memory(program, context)
        first = context.original or program
        original, steps, claims = program, list[Step](), [Claim(program, program)]
        notes = context.data.notes if isinstance(context.data, Calibration) else ()
        for place, each in enumerate(self.passes):
            led = _led(context, claims)
            own = replace(context, original=first, selection=led, stage=str(each), step=place)
            own.observe(Progress(own.stage))
            if "task" in each.uses:  # training is long: what went before is proven first
                claims = [replace(claim, proof=claim.prove()) for claim in claims]
            outcome, step = self._step(program, own)
            claims = _claimed(claims, program, outcome, each.preserves and not outcome.refitted)
            program = outcome.program
            if "data" in each.uses:
                step, notes = replace(step, remarks=(*notes, *step.remarks)), ()  # once
            steps.append(step)
        refitted = dict.fromkeys(name for claim in claims for name in claim.refitted)
        made = tuple(claim for claim in claims if not claim.is_idle)
        return Result(original, program, claims[0].selection, tuple(steps), tuple(refitted), made)

    def _step(self, program: Program, context: Context) -> tuple[Outcome, Step]:
        each = self.passes[context.step]
        try:
            with computing_on(check_device(context.device) if context.device else None):
                outcome, spent = run_or_resume(self.passes, program, context)
        except FxpruneError as error:
            done = ", ".join(str(p) for p in self.passes[: context.step])
            raise PassError(f"{each}{', after ' + done if done else ''}: {error}") from error
        part, counts = outcome.selection, (program.parameter_count(), outcome.program.parameter_count())
        did = len(part) or part.removed or outcome.refitted or outcome.factors or outcome.proof
        note = "" if did or each.preserves else f"{NOTHING}{each.idle(program)}"
        return outcome, Step(
            str(each),
            spent,
            len(part),
            counts,
            note,
            outcome.details,
            (*each.remarks(program), *outcome.remarks),
        )


def _tell_memory(program: Program, context: Context) -> None:
    """Tell what a program on disk takes; UsageError where there is not so much."""
    if not program.is_mapped():
        return
    data = context.data if isinstance(context.data, Calibration) else None
    need = memory_need(program, data)
    need.check()
    told = f"the weights stay on disk: {need}"
    if context.device in ("", "cpu"):
        spent = duration_text(total_work(run_work(program, data)).seconds())
        told = f"{told}; scores by data and re-fits of all matrices take about {spent}"
    context.observe(Progress("memory", told))


def _led(context: Context, claims: list[Claim]) -> Selection | None:
    """Return what leads from the context's original, or the pipeline's, to the program of now; None where no selection does."""
    if len(claims) > 1 or (context.original is not None and context.selection is None):
        return None
    return (context.selection or Selection()).compose(claims[0].selection)


def _claimed(claims: list[Claim], program: Program, outcome: Outcome, unchanged: bool) -> list[Claim]:
    """Return the claims with what a pass did: the last one extended, or, where it trained or made factors, a claim of its own."""
    if not (outcome.proof or outcome.factors):
        return [
            *claims[:-1],
            claims[-1].then(outcome.program, outcome.selection, outcome.refitted, unchanged),
        ]
    own = Claim(
        program,
        outcome.program,
        Selection(),
        outcome.refitted,
        outcome.factors,
        outcome.proof,
        bool(outcome.proof),
    )
    return [*claims, own, Claim(outcome.program, outcome.program)]
