"""Fine-tuning: train a copy of a program on a task, predict with it, and evaluate it.

`TextClassification` is the evaluator of a search over layers, as in Greedy-layer Pruning (arXiv 2105.14839). Programs are copied before
they are trained, so that candidates that share weights are not changed.
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
from fxprune.training.loop import Checkpoints, Hooks, Loop, Recipe, accelerator_for
from fxprune.training.sharded import all_gathered, is_sharded, is_sharding, put

Metric: TypeAlias = Callable[[Any, Any], float]
"""(labels, predictions), both one-dimensional integer arrays, to a number; higher is better. Those of scikit-learn fit."""


def accuracy(labels: Any, predictions: Any) -> float:
    """Return the share of correct predictions."""
    return float((labels == predictions).mean())


def fine_tune(
    program: Program,
    examples: Examples,
    recipe: Recipe,
    output: str | Sequence[str] = "logits",
    hooks: Hooks | None = None,
    checkpoints: Checkpoints | None = None,
) -> nn.Module:
    """Return a trained copy of the program as a module in eval mode; the loss is the cross-entropy of `output`.

    `output` is (rows, …, classes); several outputs of one shape are stacked (see `logits`).
    """
    module, outputs = program.module(), (output,) if isinstance(output, str) else output

    def lesson(ready: Any, batch: Any) -> Tensor:
        inputs, labels, _ = batch
        answers = logits(program.output_names(), ready(**inputs), outputs)
        return cross_entropy(answers, labels)

    with placed([module], recipe.device):
        sharded = is_sharding(accelerator_for(next(module.parameters()).device))
        Loop(_Learner(module) if sharded else module, examples, recipe, hooks, checkpoints).run(lesson)
    if is_sharded(module.parameters()):
        weights = all_gathered(module.state_dict())
        module = program.module()
        put(module, weights)
    return module.eval()


class _Learner(nn.Module):
    """A graph as a plain module: FSDP2 gives what it shards another class, and a graph's class holds its code."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, **inputs: Tensor) -> Any:
        return self.graph(**inputs)


def logits(known: Sequence[str], outputs: Any, names: Sequence[str]) -> Tensor:
    """Return the outputs of these names, (rows, …, classes); several are stacked along dimension 1.

    `known` are the names of all outputs, in order. UsageError for a name that is not among them.
    """
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
    """Return the mean cross-entropy over positions that have a label; 0 where none has."""
    flat, marks = answers.flatten(0, -2), labels.flatten()
    total = nn.functional.cross_entropy(flat, marks, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def predict(
    program: Program,
    module: nn.Module,
    examples: Examples,
    outputs: Sequence[str] = ("logits",),
    batch_size: int = 64,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (row indices, logits (rows, …, classes), labels) of a module of this program, batch by batch, in order of length."""
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
    """Return the predictions of a module, in the shape of the labels: the class with the highest output, IGNORED in padding."""
    found = torch.full_like(examples.labels, IGNORED, dtype=torch.long)
    for index, said, _ in predict(program, module, examples, (output,), batch_size):
        classes = said.argmax(dim=-1)
        found[(index, slice(classes.shape[1])) if classes.ndim > 1 else index] = classes
    return found


def perplexity(program: Program, module: nn.Module, examples: Examples, output: str = "logits") -> float:
    """Return the exponential of the mean cross-entropy over all positions that have a label; lower is better."""
    total, count = 0.0, 0
    for _, said, labels in predict(program, module, examples, (output,), 8):
        places = int((labels != IGNORED).sum())
        total, count = total + float(cross_entropy(said, labels)) * places, count + places
    return math.exp(min(total / max(1, count), 700.0))


@dataclass(frozen=True, eq=False)
class TextClassification:
    """Evaluator for searches: fine-tune a copy on a `share` of the examples, the same rows every time; return the metric on the rest.

    With `test`, train on all examples, and return the metric on `test`. The metric is rounded to three digits, as by the authors, so that
    near ties go to the last layer.
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
        """Return (examples to train on, examples to evaluate on)."""
        return (self.examples, self.test) if self.test else self.examples.split(self.share, self.split_seed)

    @property
    def identity(self) -> str:
        """Key in a journal of evaluations: the recipe, the metric, the rows."""
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
