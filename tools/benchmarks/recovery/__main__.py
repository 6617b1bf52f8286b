"""`python -m fxprune.tools.benchmarks.recovery`: compare `slim` with and without `recover`, at measured speeds, on unlabelled inputs.

Every figure goes into a JSON Lines file as soon as it is known (`--out`), and docs/results/recovery.md is written from it (`--page`).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.calibration import Calibration, check_calibration
from fxprune.calibration.repair import repair, unknown_repair
from fxprune.cost.count import count_flops
from fxprune.export import export_onnx
from fxprune.ir import Point, Program, Selection, feeds, point_with
from fxprune.passes import Recover, Slim
from fxprune.pipeline import Context, Pipeline, Result
from fxprune.rewrite.apply import apply
from fxprune.runtimes import Settings, measure
from fxprune.runtimes.timing import fastest
from fxprune.tools.benchmarks.recovery.page import render_recovery
from fxprune.tools.benchmarks.speed import read_figures
from fxprune.tools.benchmarks.subjects import subject
from fxprune.tools.benchmarks.subjects.torch_pruning import at_speed
from fxprune.tools.reports import report

_SECONDS = 4.0


@dataclass(frozen=True)
class RecoveryPlan:
    """Plan of a subject: speeds, minutes, rows that `slim` is calibrated on, rows to recover on, the point, options of both passes.

    `peer` is Torch-Pruning's importance.
    """

    speeds: tuple[float, ...]
    minutes: float
    rows: int
    more: int
    point: Mapping[str, int]
    peer: str = "magnitude"
    slim: Mapping[str, Any] = field(default_factory=dict)
    recover: Mapping[str, Any] = field(default_factory=dict)


#: subject: its plan
RECOVERIES: dict[str, RecoveryPlan] = {
    "photographs": RecoveryPlan(
        (1.25, 1.5),
        20,
        320,
        800,
        {"batch": 1},
        "taylor",
        {"distance": "divergence"},
        {"images": "inputs", "batch": 16},
    ),
    "minilm": RecoveryPlan((2.0, 3.0, 4.0), 10, 512, 8000, {"batch": 8, "length": 128}),
    "smollm2": RecoveryPlan(
        (1.25, 1.5),
        30,
        128,
        1600,
        {"batch": 1, "length": 128},
        "taylor",
        {"distance": "divergence"},
        {"batch": 4, "distance": "divergence", "local": 0.0},
    ),
}

#: name: options of `recover` that differ from the plan's, to see what each part buys
RECOVERY_VARIANTS: dict[str, Mapping[str, Any]] = {
    "recover": {},
    "outputs alone": {"hidden": 0.0},
    "never part by part": {"local": 0.0},
    "no augmentation": {"images": ""},
}


class RecoveryBench:
    """Bench of one subject: the original, its file, and all measurements against it, in one run."""

    def __init__(self, name: str, out: Path, threads: int, minutes: float) -> None:
        self.subject, self.plan, self.out, self.threads = subject(name), RECOVERIES[name], out, threads
        self.minutes = minutes or self.plan.minutes
        loaded = self.subject.load()
        self.loaded = replace(loaded, model=self.subject.deployed(loaded.model))  # type: ignore[arg-type]
        self.program = self.loaded.capture(())
        self.data = check_calibration(self.program, self._batches(), self.plan.rows)
        self.point: Point = point_with(self.program, **self.plan.point)
        self.folder = Path(tempfile.mkdtemp(prefix="fxprune-recovery-"))
        self.before = export_onnx(self.program, self.folder / "original.onnx").path
        given = feeds(self.program, self.point)
        self.settings, _ = fastest(self.before, given, Settings(threads), _SECONDS)
        self.note("dense", metric=self._metric(self.program), level=self.settings.optimization)

    def _batches(self) -> list[Any]:
        """Return the batches to recover on in another order, for those of texts lie by length; `slim` has the first ones."""
        found = self.subject.calibration(self.plan.more)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(1)).tolist()
        return [found[i] for i in order]

    def note(self, kind: str, **figures: Any) -> None:
        """Append one line of results to the file, and print its beginning to standard error."""
        text = json.dumps({"subject": self.subject.name, "kind": kind, **figures}, default=float)
        print(text[:400], file=sys.stderr, flush=True)
        with self.out.open("a", encoding="utf-8") as lines:
            lines.write(text + "\n")

    def speed(self, speed: float, variants: Sequence[str], rounds: int, refits: Sequence[str]) -> None:
        """Measure a cut to a speed, the same with other re-fits, and what each variant of a recovery makes of it."""
        options = self._options(speed)
        cut = self._run(Pipeline((Slim(**options),)), self.program, Selection())
        self._row(speed, "slim", cut, 0.0, cut.steps[-1].seconds)
        for how in refits:
            self._refitted(speed, cut.selection, how)
        for name in variants:
            self._row(speed, name, *self._timed(self._recovery(name), cut.program, cut.selection))
        if rounds > 1:
            between = self.minutes / (2 * (rounds - 1))
            last = Recover(minutes=self.minutes / 2, **self.plan.recover)
            steps = Pipeline((Slim(**options, rounds=rounds, between=between), last))
            self._row(speed, f"{rounds} rounds", *self._timed(steps, self.program, Selection()))

    def _refitted(self, speed: float, selection: Selection, how: str) -> None:
        """Measure a selection with its weights re-fitted in another way."""
        bare, start = apply(self.program, selection), time.perf_counter()
        program = repair(self.program, bare, selection, self.data, how).program
        seconds = time.perf_counter() - start
        sizes = {"speedup": self._speedup(program), "flop_ratio": self._fewer(program)}
        method, metric = f"the same cut, repair={how!r}", self._metric(program)
        self.note("method", speed=speed, method=method, seconds=seconds, metric=metric, **sizes)

    def kind(self, speed: float, name: str) -> None:
        """Measure a cut that was calibrated on inputs of another kind than those of the use."""
        data = check_calibration(self.program, self.subject.kinds[name](self.plan.rows, 0))
        cut = self._run(Pipeline((Slim(**self._options(speed)),)), self.program, Selection(), data)
        self._row(speed, f"slim on {name} inputs", cut, 0.0)

    def peer(self, speed: float) -> None:
        """Measure Torch-Pruning at the ratio that comes closest to a speed, and what the same recovery makes of its program."""

        def tried(pruned: nn.Module) -> tuple[float, Program]:
            program = replace(self.loaded, model=self.subject.deployed(pruned)).capture(())
            return self._speedup(program), program

        found, why = at_speed(self.subject, speed, self.plan.peer, tried)
        if why:
            self.note("refused", speed=speed, method="Torch-Pruning", why=why)
        if found is None:
            return
        method = f"Torch-Pruning, {self.plan.peer}, ratio {found.ratio:.2f}"
        self._row(speed, method, self._run(Pipeline(()), found.program, None), 0.0)
        self._row(
            speed, "Torch-Pruning and recover", *self._timed(self._recovery("recover"), found.program, None)
        )

    def _options(self, speed: float) -> dict[str, Any]:
        own = {"threads": self.threads, "optimization": self.settings.optimization}
        return {**self.plan.slim, **self.plan.point, **own, "latency": 1 / speed}

    def _recovery(self, variant: str) -> Pipeline:
        options = {**self.plan.recover, **RECOVERY_VARIANTS[variant]}
        return Pipeline((Recover(minutes=self.minutes, **options),))

    def _timed(self, steps: Pipeline, program: Program, selection: Selection | None) -> tuple[Result, float]:
        start = time.perf_counter()
        return self._run(steps, program, selection), time.perf_counter() - start

    def _run(
        self, steps: Pipeline, program: Program, selection: Selection | None, data: Calibration | None = None
    ) -> Result:
        context = Context(data=data or self.data, original=self.program, selection=selection, observe=_Talk())
        return steps.run(program, context)

    def _metric(self, program: Program) -> float:
        return self.subject.metric(lambda batch: program(**batch))

    def _row(self, speed: float, method: str, found: Result, seconds: float, search: float = 0.0) -> None:
        last = found.steps[-1].details if found.steps else {}
        details = last.get("recovery", {}) | {
            name: last[name] for name in ("trials", "share") if name in last
        }
        self.note(
            "method",
            speed=speed,
            method=method,
            seconds=seconds,
            search=search,
            metric=self._metric(found.program),
            speedup=self._speedup(found.program),
            flop_ratio=self._fewer(found.program),
            proof=found.proof.relative,
            **details,
        )

    def _fewer(self, program: Program) -> float:
        return count_flops(self.program, self.point) / count_flops(program, self.point)

    def _speedup(self, program: Program) -> float:
        """The speedup of a program's file over the original's, timed in turns with it."""
        file = export_onnx(program, self.folder / "after.onnx", overwrite=True).path
        files = {"before": self.before, "after": file}
        timed = measure(files, dict.fromkeys(files, feeds(self.program, self.point)), self.settings, _SECONDS)
        return timed["before"].median / timed["after"].median


class _Talk:
    """Prints what a pass does, at most every 30 seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, progress: Any) -> None:
        if time.monotonic() - self._last > 30:
            self._last = time.monotonic()
            print(
                f"  {progress.stage}: {progress.text} {progress.done}/{progress.total}",
                file=sys.stderr,
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or write the page from the figures of earlier runs."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.page:
        options.page.write_text(render_recovery(read_figures(options.out)), encoding="utf-8")
        return
    wrong = next(filter(None, map(unknown_repair, options.refits)), "")
    if wrong:
        parser.error(wrong)
    for name in options.subjects or RECOVERIES:
        bench = RecoveryBench(name, options.out, options.threads, options.minutes)
        bench.note("machine", **report.machine())
        if options.note:
            bench.note("remark", text=options.note)
        unknown = set(options.kinds) - bench.subject.kinds.keys()
        if unknown:
            parser.error(
                f"{name} has no inputs of the kind {min(unknown)}: {', '.join(bench.subject.kinds) or 'of none'}"
            )
        for speed in options.speeds or bench.plan.speeds:
            if options.cut:
                bench.speed(speed, options.variants, options.rounds, options.refits)
            for kind in options.kinds:
                bench.kind(speed, kind)
            if options.peer:
                bench.peer(speed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fxprune.tools.benchmarks.recovery", description=__doc__)
    add = parser.add_argument
    add("subjects", nargs="*", help=f"of {', '.join(RECOVERIES)}")
    add("--out", type=Path, default=Path("out/recovery.jsonl"), help="where figures are kept")
    add("--threads", type=int, default=1, help="of the runtime, while deciding (1)")
    add("--speeds", type=float, nargs="+", help="instead of the plan's")
    add("--minutes", type=float, default=0.0, help="instead of the plan's")
    add(
        "--variants",
        nargs="*",
        choices=RECOVERY_VARIANTS,
        default=("recover",),
        help="of the recovery (recover)",
    )
    add(
        "--refits",
        nargs="*",
        default=(),
        help="of the same cut, in place of all: none, readers, all+logits …",
    )
    add("--rounds", type=int, default=1, help="cuts of one more method, with recoveries between them")
    add(
        "--kinds",
        nargs="*",
        default=(),
        help="of inputs unlike those of the use, to calibrate `slim` on: narrow, foreign",
    )
    add(
        "--peer",
        action="store_true",
        help="measure Torch-Pruning as well, with and without the same recovery",
    )
    add(
        "--cut",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure `slim` and the variants (yes)",
    )
    add("--note", default="", help="a sentence about the run, for the page")
    add("--page", type=Path, help="write the page from the figures, and measure nothing")
    return parser


if __name__ == "__main__":
    main()
