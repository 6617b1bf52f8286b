"""`python -m fxprune.tools.benchmarks.ablation [TASK …]`: compare methods and their ablations on real tasks, one `--study` at a time.

A teacher is trained once; then a student for each variant, density and seed, on the same rows. Results go into a JSON Lines file as soon as
they are known, students and teachers beside it, so that an interrupted run can be continued, and several may share the work. `--measure`
lowers and times the trained students; `--page` writes the page of the study (docs/results/grain.md, blocks.md or flop.md) from the file.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fxprune import analyze
from fxprune.cost import Clock, default_cache
from fxprune.export import export_onnx
from fxprune.gates import Lowered, find_blocked_weights
from fxprune.gates.gate import tensors_of
from fxprune.gates.lower import lower
from fxprune.ir import Program, feeds, point_with
from fxprune.passes.fill import FILLED_ROLES
from fxprune.pipeline.train import open_units
from fxprune.runtimes import Settings, measure
from fxprune.search.alternatives import cheaper_splits, cheapest_lowerings
from fxprune.tools.benchmarks.ablation_page import render_ablation
from fxprune.tools.benchmarks.ablation_studies import EPOCHS, STARTS, STUDIES, STUDY_VARIANTS, UNTRAINED
from fxprune.tools.benchmarks.subjects.common import task_data
from fxprune.tools.inputs import models
from fxprune.tools.inputs.huggingface import load_tokenizer
from fxprune.tools.inputs.metrics import METRICS
from fxprune.tools.inputs.tables import Columns, read_task
from fxprune.tools.reports import report
from fxprune.tools.reports.train_report import POINT
from fxprune.training import Pruner, Recipe
from fxprune.training.devices import placed
from fxprune.training.examples import encoded
from fxprune.training.fine_tune import fine_tune, predicted
from fxprune.training.teacher_cache import TeacherCache
from fxprune.training.train import train

MODEL = "minilm"
_SECONDS = 6.0


_STUDENT = Recipe(epochs=5, learning_rate=1e-4, warmup=0.1, weight_decay=0.01, clip=1.0, precision="bf16")
_TEACHER = replace(_STUDENT, epochs=3, learning_rate=5e-5)


@dataclass(frozen=True)
class _Setting:
    """Setting of a task: its folder, columns and metric, the number of training rows (0: all), and the two recipes."""

    folder: str
    columns: Columns
    metric: str
    rows: int
    teacher: Recipe = _TEACHER
    student: Recipe = _STUDENT
    #: decay of the scores: the paper's 0.998 averages over 500 steps, too many for the runs here
    beta: float = 0.99


SETTINGS: dict[str, _Setting] = {
    "CoLA": _Setting("CoLA", Columns(names=("source", "label", "star", "sentence")), "matthews", 0),
    "SST-2": _Setting("SST-2", Columns(), "accuracy", 8000),
}


class _Bench:
    """Bench of one task: its program and rows, its teacher, and the students."""

    def __init__(self, task: str, out: Path, device: str = "") -> None:
        self.task, self.out, self.device = task, out, device
        own = SETTINGS[task]
        teacher, student = (replace(recipe, device=device) for recipe in (own.teacher, own.student))
        self.setting = replace(own, teacher=teacher, student=student)
        folder = task_data(f"{self.setting.folder}/train.tsv").parent
        found = read_task(folder, self.setting.columns, self.setting.rows)
        tokenizer = load_tokenizer(MODEL)
        self.program = models.classifier(MODEL, len(found.classes), 0).capture(training=True)
        self.train, self.dev = (
            encoded(tokenizer, rows.texts, rows.labels, self.program) for rows in (found.train, found.dev)
        )
        self.recall = TeacherCache()
        self.teacher = self._teacher()

    def _teacher(self) -> nn.Module:
        path = self.out.parent / f"{self.task}-teacher.safetensors"
        if path.exists():
            module = self.program.module()
            module.load_state_dict(load_file(path))
            return module.eval()
        start = time.perf_counter()
        module = fine_tune(self.program, self.train, self.setting.teacher)
        save_file(_plain(module), path)
        self.note(variant="teacher", metric=self.judged(module), seconds=time.perf_counter() - start,
                  rows=[len(self.train), len(self.dev)], recipe=asdict(self.setting.teacher))  # fmt: skip
        return module

    def judged(self, module: nn.Module) -> float:
        """The task's metric of a module on dev."""
        with placed([module], self.device):
            answers = predicted(self.program, module, self.dev)
        return METRICS[self.setting.metric].of(self.dev.labels.numpy(), answers.numpy())

    def student(self, variant: str, density: float, seed: int) -> None:
        """Train the student of a variant, density and seed; save its weights and record its metric."""
        method, program = self.method(variant, density, seed), self.start(variant, density, seed)
        recipe = replace(self.setting.student, seed=seed)
        longer = EPOCHS.get(variant) or getattr(method, "epochs", 0)
        recipe = replace(recipe, epochs=0 if variant in UNTRAINED else longer or recipe.epochs)
        start = time.perf_counter()
        taught = train(program, method, self.train, recipe, self.teacher, recall=self.recall)
        seconds = time.perf_counter() - start
        save_file(_plain(taught.module), self.file(variant, density, seed))
        self.note(variant=variant, density=density, seed=seed, metric=self.judged(taught.module), seconds=seconds,
                  reached=taught.pruner.density, method=str(method), recipe=asdict(recipe), **_open_units(taught.pruner))  # fmt: skip

    def lowered(self, variant: str, density: float, seed: int, settings: Settings) -> tuple[Lowered, Any]:
        """A trained student, lowered, and for each axis of uneven heads the lowering that is fastest here."""
        method, clock = self.method(variant, density, seed), Clock(settings, default_cache())
        gated = method.gated(self.start(variant, density, seed))
        tensors = load_file(self.file(variant, density, seed))
        how = cheapest_lowerings(gated, tensors, clock, POINT)
        done = lower(gated, tensors, how)
        return replace(done, program=method.finish(done.program, clock, POINT)), how

    def start(self, variant: str, density: float, seed: int) -> Program:
        """The program that a student starts from: that of `STARTS` where the variant has one, else the whole program."""
        return STARTS[variant](self, density, seed) if variant in STARTS else self.program

    def left_by(self, variant: str, density: float, seed: int) -> Program:
        """The lowered program of a student, which is trained first where its weights are not saved yet."""
        if not self.file(variant, density, seed).exists():
            self.student(variant, density, seed)
        gated = self.method(variant, density, seed).gated(self.start(variant, density, seed))
        return lower(gated, load_file(self.file(variant, density, seed))).program

    def method(self, variant: str, density: float, seed: int) -> Any:
        """The method of a variant, at a density."""
        make, _ = STUDY_VARIANTS[variant]
        return make(density, seed, self.setting.beta)

    def file(self, variant: str, density: float, seed: int) -> Path:
        """The path of a student's weights."""
        return self.out.parent / f"{self.task}-{variant}-{density:g}-{seed}.safetensors"

    def note(self, **figures: Any) -> None:
        """Append one line of results to the file, and print its beginning to standard error."""
        text = json.dumps({"task": self.task, "measure": self.setting.metric, **figures}, default=float)
        sys.stderr.write(text[:300] + "\n")
        with self.out.open("a", encoding="utf-8") as lines:
            lines.write(text + "\n")


def _open_units(pruner: Pruner) -> dict[str, Any]:
    """Open units: the value dims of each open head by layer, the neurons of each layer, and ranks where there are any."""
    heads: list[list[int]] = []
    counts: dict[str, list[int]] = {"ffn": [], "rank": []}
    for entry in open_units(pruner):
        if entry["role"] == "v":
            heads.append([count for count in entry["open"] if count])
        if entry["role"] == "heads":
            heads.append([0] * entry["open"])
        if entry["role"] in counts:
            counts[entry["role"]].append(entry["open"])
    found = {"heads": heads, "neurons": counts["ffn"]}
    return found | {"ranks": counts["rank"]} if counts["rank"] else found


def _zeros(program: Program) -> float:
    """The share of zeros among the weights of matrices over heads or neurons (`FILLED_ROLES`)."""
    sites = find_blocked_weights(analyze(program), FILLED_ROLES)
    found = [program.tensors()[site.matrix.weight] for site in sites]
    return sum(int((w == 0).sum()) for w in found) / max(1, sum(w.numel() for w in found))


def count_heads_and_neurons(program: Program) -> dict[str, int]:
    """The numbers of heads and neurons of a program, over its exact axes."""
    axes = [axis for axis in analyze(program).axes if axis.exact]
    return {role: sum(axis.size for axis in axes if axis.role == role) for role in ("heads", "ffn")}


def _plain(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in tensors_of(module).items()}


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, float, int]]:
    """The students in order: all variants of one density and seed, before the next."""
    variants = options.variants or [name for name in STUDIES[options.study] if name not in EPOCHS]
    for seed, density, variant in product(options.seeds, options.densities, variants):
        yield variant, density, seed


def read(path: Path) -> list[dict[str, Any]]:
    """The results so far; empty where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _known(path: Path, task: str, figure: str = "reached") -> set[tuple[str, float, int]]:
    """The students of a task that have a figure, by default the trained ones: (variant, density, seed) each."""
    rows = [row for row in read(path) if row["task"] == task and figure in row]
    return {(row["variant"], row["density"], row["seed"]) for row in rows}


def _measure(bench: _Bench, settings: Settings, seconds: float) -> None:
    """Lower, export and time the students that have no timing yet, each in turns with the whole model."""
    timed = _known(bench.out, bench.task, "speedup")
    with tempfile.TemporaryDirectory() as scratch:
        before = export_onnx(bench.program, Path(scratch) / "before.onnx")
        for variant, density, seed in sorted(_known(bench.out, bench.task) - timed):
            done, how = bench.lowered(variant, density, seed, settings)
            slim = done.program
            _, verdicts = cheaper_splits(slim, Clock(settings, default_cache()), POINT)
            after = export_onnx(slim, Path(scratch) / "after.onnx", overwrite=True)
            point = point_with(bench.program, **POINT)
            given = feeds(bench.program, point)
            files = {"before": before.path, "after": after.path}
            found = measure(files, dict.fromkeys(files, given), settings, seconds)
            bench.note(variant=variant, density=density, seed=seed, speedup=found["before"].median / found["after"].median,
                       parameters=slim.parameter_count(), file_bytes=after.bytes, whole_bytes=before.bytes, how=how,
                       relative=after.relative, point=point, machine=report.machine(),
                       splits=[asdict(verdict) for verdict in verdicts], zeros=_zeros(slim), **count_heads_and_neurons(slim))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the students that have no results yet; or measure the trained ones; or write the page."""
    options = _parser().parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if options.page:
        told = {name: told for name, (_, told) in STUDIES[options.study].items()}
        text = render_ablation(options.study, read(options.out), told, options.note)
        options.page.write_text(text, encoding="utf-8")
        return
    for task in options.tasks or SETTINGS:
        bench = _Bench(task, options.out, options.device)
        if options.measure:
            _measure(bench, Settings(options.threads), _SECONDS)
            continue
        for one in wanted(options):
            if one not in _known(options.out, task):
                bench.student(*one)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fxprune.tools.benchmarks.ablation", description=__doc__)
    add = parser.add_argument
    add("tasks", nargs="*", help=f"of {', '.join(SETTINGS)}")
    add("--out", type=Path, default=Path("out/grain/results.jsonl"), help="where figures are kept")
    add("--study", choices=STUDIES, default="grain", help="which rows (grain)")
    add("--variants", nargs="+", choices=STUDY_VARIANTS, help="(all of the study but those of more epochs)")
    add("--densities", nargs="+", type=float, default=[0.1, 0.25, 0.5], help="(0.1 0.25 0.5)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    add("--device", default="", help="where they are trained: cpu or cuda (cpu)")
    add("--threads", type=int, default=1, help="of torch, and of the runtime (1)")
    add("--measure", action="store_true", help="lower and time what was trained")
    add("--page", type=Path, help="write the page from the figures, and train nothing")
    add("--note", default="", help="a sentence about the run, for the page")
    return parser


if __name__ == "__main__":
    main()
