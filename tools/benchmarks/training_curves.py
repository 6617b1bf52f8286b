"""`python -m fxprune.tools.benchmarks.training_curves`: compare losses of a captured program and its original on SST-2, seed by seed.

Both train on the same rows in the same order, with the same recipe and the same random numbers.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.tools.benchmarks.subjects.common import task_data
from fxprune.tools.inputs import models
from fxprune.tools.inputs.huggingface import load_tokenizer
from fxprune.tools.inputs.tables import read_task
from fxprune.tools.reports.layers_report import pyplot, spread
from fxprune.training import Examples, Recipe
from fxprune.training.examples import TrainingBatch, encoded
from fxprune.training.fine_tune import accuracy, cross_entropy, logits, predicted
from fxprune.training.loop import Hooks, Loop

_RECIPE = Recipe(epochs=2, learning_rate=5e-5, warmup=0.1, weight_decay=0.01, clip=1.0)
WINDOW = 10  # steps that a loss is averaged over


def trained(module: nn.Module, rows: Examples, recipe: Recipe, names: Sequence[str]) -> list[float]:
    """Train a module in place, and return the loss of every step."""
    losses: list[float] = []

    def lesson(ready: Any, batch: TrainingBatch) -> Tensor:
        inputs, labels, _ = batch
        return cross_entropy(logits(names, ready(**inputs), ("logits",)), labels)

    loop = Loop(module, rows, recipe, Hooks(after=lambda moment: losses.append(moment.loss)))
    loop.run(lesson)
    module.eval()
    return losses


def smooth(losses: Sequence[float]) -> list[float]:
    """The means of the losses over windows of WINDOW steps."""
    return [mean(losses[i : i + WINDOW]) for i in range(0, len(losses) - WINDOW + 1, WINDOW)]


def run_seed(seed: int, most: int) -> dict[str, Any]:
    """The losses and the accuracy of both modules, with one seed: the same head, the same order of rows."""
    task = read_task(task_data("SST-2/train.tsv").parent, most=most)
    loaded = models.classifier("minilm", 2, seed)
    program = loaded.capture(training=True)
    tokenizer = load_tokenizer("minilm")
    train, dev = (encoded(tokenizer, rows.texts, rows.labels, program) for rows in (task.train, task.dev))
    recipe, names = replace(_RECIPE, seed=seed), program.output_names()
    found: dict[str, Any] = {"seed": seed, "rows": [len(train), len(dev)]}
    assert isinstance(loaded.model, nn.Module)
    for name, module in (("captured", program.module()), ("original", loaded.model)):
        losses = trained(module, train, recipe, names)
        right = accuracy(dev.labels.numpy(), predicted(program, module, dev).numpy())
        found[name] = {"losses": losses, "accuracy": right}
    return found


def _summary(runs: Sequence[dict[str, Any]]) -> str:
    """A summary of the distances between curves: of both modules for one seed, and of the original between seeds."""
    curves = {name: [smooth(run[name]["losses"]) for run in runs] for name in ("original", "captured")}
    pairs = [abs(a - b) for a, b in zip(*map(chain.from_iterable, curves.values()), strict=True)]
    seeds = [stdev(column) for column in zip(*curves["original"], strict=True)]
    bias = mean(mean(c) for c in curves["captured"]) - mean(mean(c) for c in curves["original"])
    accuracies = {name: [run[name]["accuracy"] for run in runs] for name in curves}
    return (
        f"mean loss over {WINDOW} steps: |captured - original| of one seed {mean(pairs):.4f} on average, "
        f"standard deviation between seeds of the original {mean(seeds):.4f}; mean of captured - original {bias:+.4f}; "
        f"accuracy on dev: original {spread(accuracies['original'])}, captured {spread(accuracies['captured'])}"
    )


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw both curves of each seed into a file."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for run in runs:
        for name, style, color in (("original", "-", "C0"), ("captured", "--", "C1")):
            losses = smooth(run[name]["losses"])
            steps = [WINDOW * (i + 0.5) for i in range(len(losses))]
            axes.plot(steps, losses, style, color=color, alpha=0.7, label=name if run is runs[0] else None)
    axes.set(xlabel="step", ylabel=f"loss, mean of {WINDOW} steps")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both modules with each seed; print the distances between their curves, and draw them."""
    program = "python -m fxprune.tools.benchmarks.training_curves"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--rows", type=int, default=3000)
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=Path("out/curves.svg"), help="the picture; figures lie beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    runs = [run_seed(seed, options.rows) for seed in options.seeds]
    options.out.with_suffix(".json").write_text(json.dumps(runs) + "\n", encoding="utf-8")
    draw(runs, options.out)
    sys.stdout.write(_summary(runs) + "\n")


if __name__ == "__main__":
    main()
