"""`python -m fxprune.tools.ablation TASK`: GRAIN on a real task beside what it is made of, without one part at a time.

A teacher is trained once; then a student for each variant, density and seed, on the same rows. Results go into a JSON Lines file as soon as
they are known, students and teachers beside it, so that a run that was interrupted goes on, and several may share the work. `--measure`
lowers and times what was trained; `--page` draws docs/grain.md from the file.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fxprune.analysis import analyze
from fxprune.examples import encoded
from fxprune.gates import tensors_of
from fxprune.loop import Recipe
from fxprune.metrics import METRICS
from fxprune.passes.grain import Grain
from fxprune.pruner import Pruner
from fxprune.recall import Recall
from fxprune.tasks import fine_tune, predicted
from fxprune.teach import teach
from fxprune.tools import data, models, subject_common

MODEL = "minilm"


@dataclass(frozen=True)
class Setting:
    """A task: its folder, its columns, its metric, the rows that are used, and the two recipes."""

    folder: str
    columns: data.Columns
    metric: str
    rows: int
    teacher: Recipe
    student: Recipe
    beta: float = (
        0.99  #: of the scores: the paper's 0.998 remembers 500 steps, a fifth of which is a run here
    )


RECIPE = Recipe(learning_rate=1e-4, warmup=0.1, weight_decay=0.01, clip=1.0, precision="bf16")
SETTINGS: dict[str, Setting] = {
    "CoLA": Setting(
        "CoLA",
        data.Columns("sentence", "label", names=("source", "label", "star", "sentence")),
        "matthews",
        0,
        replace(RECIPE, epochs=3, learning_rate=5e-5),
        replace(RECIPE, epochs=5),
    ),
    "SST-2": Setting(
        "SST-2",
        data.Columns(),
        "accuracy",
        8000,
        replace(RECIPE, epochs=3, learning_rate=5e-5),
        replace(RECIPE, epochs=5),
    ),
}

#: name: (what differs from GRAIN, what it is)
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "grain": ({}, "GRAIN"),
    "random": ({"score": "random"}, "random scores"),
    "heads": ({"units": "heads"}, "whole heads and neurons"),
    "no-structure": ({"alpha": 0.0}, "without structure regularisation"),
    "no-separation": ({"separate": False}, "without gradient separation"),
    "no-hidden": ({"hidden": 0.0}, "without the hidden loss"),
}


class Bench:
    """One task: its program and rows, its teacher, and the students."""

    def __init__(self, task: str, out: Path) -> None:
        self.task, self.out, self.setting = task, out, SETTINGS[task]
        folder = subject_common.data(f"{self.setting.folder}/train.tsv").parent
        found = data.read(folder, self.setting.columns, self.setting.rows)
        tokenizer = models.tokenizer(MODEL)
        self.program = models.classifier(MODEL, len(found.classes), 0).capture()
        self.train, self.dev = (
            encoded(tokenizer, rows.texts, rows.labels, self.program) for rows in (found.train, found.dev)
        )
        self.recall = Recall()
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
        """The task's metric on dev."""
        answers = predicted(self.program, module, self.dev)
        return METRICS[self.setting.metric].of(self.dev.labels.numpy(), answers.numpy())

    def student(self, variant: str, density: float, seed: int) -> None:
        """Train one, and keep it."""
        changes, _ = VARIANTS[variant]
        method = Grain(density=density, beta=self.setting.beta, seed=seed, **changes)
        recipe = replace(self.setting.student, seed=seed)
        start = time.perf_counter()
        taught = teach(self.program, method, self.train, recipe, self.teacher, recall=self.recall)
        seconds = time.perf_counter() - start
        save_file(_plain(taught.module), self.file(variant, density, seed))
        self.note(variant=variant, density=density, seed=seed, metric=self.judged(taught.module), seconds=seconds,
                  reached=taught.pruner.density, method=str(method), recipe=asdict(recipe), **left(taught.pruner))  # fmt: skip

    def file(self, variant: str, density: float, seed: int) -> Path:
        """Where a student lies."""
        return self.out.parent / f"{self.task}-{variant}-{density:g}-{seed}.safetensors"

    def note(self, **figures: Any) -> None:
        """One line of results."""
        text = json.dumps({"task": self.task, "measure": self.setting.metric, **figures}, default=float)
        sys.stderr.write(text[:300] + "\n")
        with self.out.open("a", encoding="utf-8") as lines:
            lines.write(text + "\n")


def left(pruner: Pruner) -> dict[str, Any]:
    """What is open: heads by the number of their value dims in each layer, and neurons in each layer."""
    heads: list[list[int]] = []
    neurons: list[int] = []
    roles = {axis.name: axis.role for axis in analyze(pruner.gated.base).axes}
    for gate, open_ in pruner.open.items():
        if roles[gate.of] == "v":
            heads.append([int(count) for count in open_.sum(-1) if count])
        if roles[gate.of] == "heads":
            heads.append([0] * int(open_.sum()))
        if roles[gate.of] == "ffn":
            neurons.append(int(open_.sum()))
    return {"heads": heads, "neurons": neurons}


def _plain(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in tensors_of(module).items()}


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, float, int]]:
    """The students in order: all variants of one density and seed, before the next."""
    for seed in options.seeds:
        for density in options.densities:
            for variant in options.variants:
                yield variant, density, seed


def read(path: Path) -> list[dict[str, Any]]:
    """What is known so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def known(path: Path, task: str) -> set[tuple[str, float, int]]:
    """The students that were trained."""
    return {
        (row["variant"], row["density"], row["seed"])
        for row in read(path)
        if row["task"] == task and "density" in row
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not known yet."""
    parser = argparse.ArgumentParser(prog="python -m fxprune.tools.ablation", description=__doc__)
    add = parser.add_argument
    add("task", choices=SETTINGS)
    add("--out", type=Path, default=Path("out/grain/results.jsonl"), help="where figures are kept")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="(all)")
    add("--densities", nargs="+", type=float, default=[0.1, 0.25, 0.5], help="(0.1 0.25 0.5)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(0 1 2)")
    add("--share", default="1/1", metavar="I/N", help="train each N-th student only, from the I-th on (1/1)")
    add("--threads", type=int, default=1, help="of torch (1)")
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    first, step = map(int, options.share.split("/"))
    todo = list(wanted(options))[first - 1 :: step]
    bench = Bench(options.task, options.out)
    for one in todo:
        if one not in known(options.out, options.task):
            bench.student(*one)


if __name__ == "__main__":
    main()
