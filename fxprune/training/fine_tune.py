"""Evaluators that train: how good a program is at a task once it was fine-tuned, the paper's own setting for a search over layers.

Who is evaluated is copied, so that candidates that share weights stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.training.devices import placed
from fxprune.training.examples import IGNORED, Examples, encoded
from fxprune.training.loop import Checkpoints, Hooks, Loop, Recipe

Metric: TypeAlias = Callable[[Any, Any], float]
"""(labels, predictions), both one-dimensional integer arrays, to a number; higher is better. Those of scikit-learn fit."""


def accuracy(labels: Any, predictions: Any) -> float:
    """The share of predictions that are right."""
    return float((labels == predictions).mean())


def fine_tune(
    program: Program,
    examples: Examples,
    recipe: Recipe,
    output: str | Sequence[str] = "logits",
    hooks: Hooks | None = None,
    checkpoints: Checkpoints | None = None,
) -> nn.Module:
    """A trained copy of the program as a module in eval mode; cross-entropy on one output, (rows, …, classes), or on several alike."""
    module, outputs = program.module(), (output,) if isinstance(output, str) else output

    def lesson(ready: Any, batch: Any) -> Tensor:
        inputs, labels, _ = batch
        answers = logits(program.output_names(), ready(**inputs), outputs)
        return cross_entropy(answers, labels)

    with placed([module], recipe.device):
        loop = Loop(module, examples, recipe, hooks, checkpoints)
        loop.run(lesson)
        trained: nn.Module = loop.accelerator.unwrap_model(loop.module)
    return trained.eval()


def logits(known: Sequence[str], outputs: Any, names: Sequence[str]) -> Tensor:
    """The outputs of these names, (rows, …, classes); several are stacked along dimension 1. `known` are the names of all of them."""
    for name in names:
        if name not in known:
            raise UsageError(f"no output {name!r}; outputs: {', '.join(known)}")
    if isinstance(outputs, Mapping) and all(name in outputs for name in names):
        found = [outputs[name].float() for name in names]
    else:
        leaves = pytree.tree_leaves(outputs, is_leaf=lambda x: x is None)
        found = [leaves[known.index(name)].float() for name in names]
    return found[0] if len(found) == 1 else torch.stack(found, dim=1)


def cross_entropy(answers: Tensor, labels: Tensor) -> Tensor:
    """The mean over places that have a label; 0 where none has."""
    total = nn.functional.cross_entropy(
        answers.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (labels != IGNORED).sum().clamp(min=1)


def predict(
    program: Program,
    module: nn.Module,
    examples: Examples,
    outputs: Sequence[str] = ("logits",),
    batch_size: int = 64,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What a module of this program says, batch by batch, rows of like length together: row numbers, logits (rows, …, classes), labels."""
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    order = torch.arange(len(examples)) if examples.lengths is None else examples.lengths.argsort()
    with torch.no_grad():
        for index in order.split(batch_size):
            inputs, labels, _ = examples.batch(index)
            said = module(**{name: value.to(device) for name, value in inputs.items()})
            yield index, logits(program.output_names(), said, outputs).cpu(), labels


def predicted(
    program: Program, module: nn.Module, examples: Examples, batch_size: int = 64, output: str = "logits"
) -> Tensor:
    """What a module of this program answers, in the shape of the labels: the class with the highest output, IGNORED in padding."""
    found = torch.full_like(examples.labels, IGNORED, dtype=torch.long)
    for index, said, _ in predict(program, module, examples, (output,), batch_size):
        classes = said.argmax(dim=-1)
        found[(index, slice(classes.shape[1])) if classes.ndim > 1 else index] = classes
    return found


def perplexity(program: Program, module: nn.Module, examples: Examples, output: str = "logits") -> float:
    """The exponential of the mean cross-entropy over all places that have a label; lower is better."""
    total, count = 0.0, 0
    for _, said, labels in predict(program, module, examples, (output,), 8):
        places = int((labels != IGNORED).sum())
        total, count = total + float(cross_entropy(said, labels)) * places, count + places
    return math.exp(min(total / max(1, count), 700.0))


@dataclass(frozen=True, eq=False)
class TextClassification:
    """An evaluator for searches: fine-tunes a copy on 85 % of the examples, the same rows every time, and gives the metric on the rest.

    With `test`, it trains on all examples and gives the metric on those. Three digits count, as for the authors, so that near ties
    go to the last layer.
    """

    examples: Examples
    recipe: Recipe = field(default_factory=Recipe)
    metric: Metric = accuracy
    output: str = "logits"
    share: float = 0.85
    split_seed: int = 0
    test: Examples | None = None

    def __call__(self, program: Program) -> float:
        if self.output not in program.output_names():
            raise UsageError(f"no output {self.output!r}; outputs: {', '.join(program.output_names())}")
        train, held_back = self.parts()
        module = fine_tune(program, train, self.recipe, self.output)
        answers = predicted(program, module, held_back, output=self.output)
        return round(float(self.metric(held_back.labels.numpy(), answers.numpy())), 3)

    def parts(self) -> tuple[Examples, Examples]:
        """What it trains on, and what it is judged on."""
        return (self.examples, self.test) if self.test else self.examples.split(self.share, self.split_seed)

    @property
    def identity(self) -> str:
        """What a journal knows it by: the recipe, the metric, the rows."""
        rows = f"{self.examples.digest()} on {self.test.digest() if self.test else (self.share, self.split_seed)}"
        name = getattr(self.metric, "__qualname__", repr(self.metric))
        return f"text classification: {name} of {self.output}, {self.recipe}, {rows}"


__all__ = [
    "Examples",
    "Metric",
    "Recipe",
    "TextClassification",
    "accuracy",
    "encoded",
    "fine_tune",
    "logits",
    "perplexity",
    "predict",
    "predicted",
]
