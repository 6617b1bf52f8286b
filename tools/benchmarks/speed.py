"""`python -m fxprune.tools.benchmarks.speed`: compare `slim` with other pruners on real models at measured speeds, without training.

Every figure goes into a JSON Lines file as soon as it is known (`--out`), and docs/results/speed.md is written from that file (`--page`).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.calibration import check_calibration
from fxprune.cost.count import count_flops
from fxprune.export import export_onnx
from fxprune.ir import Point, Program, feeds, point_with
from fxprune.passes import Slim
from fxprune.pipeline import Context, Outcome
from fxprune.rewrite.apply import apply
from fxprune.runtimes import Settings, measure
from fxprune.runtimes.timing import fastest
from fxprune.tools.benchmarks.ort_fusions import fusions
from fxprune.tools.benchmarks.peak_memory import Peak
from fxprune.tools.benchmarks.speed_page import render_speed
from fxprune.tools.benchmarks.subjects import Subject, subject
from fxprune.tools.benchmarks.subjects.torch_pruning import at_speed
from fxprune.tools.reports import report

_SECONDS = 4.0
_POINTS = tuple({"batch": batch, "length": length} for batch in (1, 8, 32) for length in (32, 128))
THREADS = (1, 2)
_METHODS = ("ours", "others")


@dataclass(frozen=True)
class Plan:
    """Plan of a subject: speeds, rows of calibration data, the point, options of the pass, Torch-Pruning's importance (`peer`)."""

    speeds: tuple[float, ...]
    rows: int
    point: Mapping[str, int]
    options: Mapping[str, Any]
    peer: str


#: subject: its plan
PLANS: dict[str, Plan] = {
    "minilm": Plan((1.5, 2.0, 3.0), 512, {"batch": 8, "length": 128}, {}, "magnitude"),
    "smollm2": Plan((1.25, 1.5), 64, {"batch": 1, "length": 128}, {"distance": "divergence"}, "taylor"),
    "efficientnet": Plan((1.25, 1.5, 2.0), 128, {"batch": 1}, {"distance": "divergence"}, "taylor"),
}


class Bench:
    """Bench of one subject: the original, its file, and all measurements against it, in one run."""

    def __init__(self, name: str, out: Path, threads: int, at: Sequence[int] = THREADS) -> None:
        self.subject: Subject = subject(name)
        self.plan, self.out, self.threads, self.at = PLANS[name], out, threads, at
        self.folder = Path(tempfile.mkdtemp(prefix="fxprune-speed-"))
        self._written: Program | None = None
        loaded = self.subject.load()
        self.loaded = replace(loaded, model=self.subject.deployed(loaded.model))  # type: ignore[arg-type]
        self.program = self._captured(self.loaded.model)
        self.data = check_calibration(self.program, self.subject.calibration(self.plan.rows))
        self.point: Point = point_with(self.program, **self.plan.point)
        self.before = export_onnx(self.program, self.folder / "original.onnx").path
        given = feeds(self.program, self.point)
        self.settings, levels = fastest(self.before, given, Settings(threads), _SECONDS)
        self.dense = self._metric(self.program)
        self.flops = count_flops(self.program, self.point)
        medians = {level: timing.median for level, timing in levels.items()}
        self.note("dense", metric=self.dense, levels=medians, fusions=fusions(self.before, self.settings))

    def _captured(self, model: Any) -> Program:
        return replace(self.loaded, model=model).capture(())

    def _metric(self, program: Program) -> float:
        return self.subject.metric(lambda batch: program(**batch))

    def note(self, kind: str, **figures: Any) -> None:
        """Append one line of results to the file, and print its beginning to standard error."""
        entry = {"subject": self.subject.name, "kind": kind, "threads": self.threads, **figures}
        text = json.dumps(entry, default=float)
        print(text[:400], file=sys.stderr, flush=True)
        with self.out.open("a", encoding="utf-8") as lines:
            lines.write(text + "\n")

    def ours(self) -> None:
        """Measure `slim` at all speeds, with and without repair; the repaired program at all points, too."""
        for speed in self.plan.speeds:
            slim = self._slim(speed, "obs", "all")
            self._row(speed, "fxprune", slim.program)
            self._row(speed, "the same plan, no repair", apply(self.program, slim.selection))
            self._everywhere(speed, slim.program)

    def others(self) -> None:
        """Measure the other methods at the same speeds."""
        for speed in self.plan.speeds:
            for score in ("magnitude", "random"):
                self._row(speed, f"{score}, uniform", self._slim(speed, score, "none").program)
            self._peer(speed)

    def _options(self) -> dict[str, Any]:
        own = {"threads": self.threads, "optimization": self.settings.optimization}
        return {**self.plan.options, **self.plan.point, **own}

    def _slim(self, speed: float, score: str, how: str) -> Outcome:
        peak = Peak()
        each = Slim(latency=1 / speed, score=score, repair=how, **self._options())
        context = Context(data=self.data, observe=lambda progress: peak.phase(progress.text))
        start = time.perf_counter()
        with peak:
            outcome = each.run(self.program, context)
        seconds = time.perf_counter() - start
        trials = outcome.details["trials"]
        self.note("trials", speed=speed, score=score, seconds=seconds, trials=trials, memory=peak.growth,
                  model_bytes=self.program.parameter_bytes(), factor=outcome.details["factor"])  # fmt: skip
        if how != "none":
            self.note("plan", speed=speed, sites=outcome.details["sites"], refits=outcome.details["refits"])
        return outcome

    def _after(self, program: Program) -> Path:
        """The program's ONNX file; it is written only where the last one that was written is another program's."""
        if program is not self._written:
            self._written = program
            export_onnx(program, self.folder / "after.onnx", overwrite=True)
        return self.folder / "after.onnx"

    def _row(self, speed: float, method: str, program: Program) -> None:
        after = self._after(program)
        speedup, ratio = self._speedup(after, _SECONDS), self.flops / count_flops(program, self.point)
        self.note("method", speed=speed, method=method, metric=self._metric(program), flop_ratio=ratio,
                  speedup=speedup, bytes=after.stat().st_size)  # fmt: skip

    def _speedup(self, after: Path, seconds: float) -> float:
        """The speedup of a file over the original's, timed in turns with it."""
        files = {"before": self.before, "after": after}
        given = dict.fromkeys(files, feeds(self.program, self.point))
        timed = measure(files, given, self.settings, seconds)
        return timed["before"].median / timed["after"].median

    def _everywhere(self, speed: float, program: Program) -> None:
        """Measure a plan at every point and number of threads, each file under the level that is fastest for it at `self.point`."""
        after = self._after(program)
        files = {"before": self.before, "after": after}
        counts = {name: fusions(path, self.settings) for name, path in files.items()}
        self.note("fusions", speed=speed, **counts)
        for threads in self.at:
            given = feeds(self.program, self.point)
            best = {n: fastest(p, given, Settings(threads), _SECONDS)[0] for n, p in files.items()}
            for point in _points(self.program):
                ms = _each(best, files, feeds(self.program, point))
                ratio = count_flops(self.program, point) / count_flops(program, point)
                levels = {name: settings.optimization for name, settings in best.items()}
                self.note("point", speed=speed, point=dict(point), at_threads=threads, ms=ms, flop_ratio=ratio,
                          speedup=ms["before"] / ms["after"], levels=levels)  # fmt: skip

    def _peer(self, speed: float) -> None:
        """Measure Torch-Pruning at the ratio that comes closest to the speed, found by bisection on measured files."""

        def tried(pruned: nn.Module) -> tuple[float, Program]:
            program = self._captured(self.subject.deployed(pruned))
            return self._speedup(self._after(program), _SECONDS / 2), program

        found, why = at_speed(self.subject, speed, self.plan.peer, tried)
        if why:
            self.note("refused", speed=speed, method="Torch-Pruning", why=why)
        if found is not None:
            self._row(speed, f"Torch-Pruning, {self.plan.peer}, ratio {found.ratio:.2f}", found.program)


def _each(best: Mapping[str, Settings], files: Mapping[str, Path], given: Any) -> dict[str, float]:
    """The median time of each file in ms, under settings of its own, over three turns."""
    found: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(3):
        for name, path in files.items():
            found[name].append(measure({name: path}, {name: given}, best[name], _SECONDS / 6)[name].median)
    return {name: sorted(medians)[1] for name, medians in found.items()}


def _points(program: Program) -> Iterator[Point]:
    found = dict.fromkeys(tuple(point_with(program, **point).items()) for point in _POINTS)
    yield from map(dict, found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or write the page from the figures of earlier runs."""
    parser = argparse.ArgumentParser(prog="python -m fxprune.tools.benchmarks.speed", description=__doc__)
    add = parser.add_argument
    add("subjects", nargs="*", help=f"of {', '.join(PLANS)}")
    add("--out", type=Path, default=Path("out/speed.jsonl"), help="where figures are kept")
    add("--threads", type=int, default=1, help="of the runtime, while deciding (1)")
    text = "numbers of threads at which our plans are timed (1 2)"
    add("--at", type=int, nargs="+", default=THREADS, help=text)
    add("--methods", nargs="+", choices=_METHODS, default=_METHODS, help="what is run (all)")
    add("--note", default="", help="a sentence about the run, for the page")
    add("--page", type=Path, help="write the page from the figures, and measure nothing")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.page:
        options.page.write_text(render_speed(read_figures(options.out), options.note), encoding="utf-8")
        return
    for name in options.subjects or PLANS:
        bench = Bench(name, options.out, options.threads, options.at)
        bench.note("machine", **report.machine())
        for method in options.methods:
            getattr(bench, method)()


def read_figures(path: Path) -> list[dict[str, Any]]:
    """The figures of earlier runs."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
