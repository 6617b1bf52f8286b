"""Evaluators that train: how good a program is at a task once it was fine-tuned, the paper's own setting for a search over layers.

The loop runs on Accelerate (the extra `train`). Who is evaluated is copied, so that candidates that share weights stay as they were.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from fxprune.errors import UsageError
from fxprune.journal import raw
from fxprune.program import Program

Metric: TypeAlias = Callable[[Any, Any], float]
"""(labels, predictions), both one-dimensional integer arrays, to a number; higher is better. Those of scikit-learn fit."""

NEEDS = "fine-tuning runs on Accelerate ({}); install: pip install 'fxprune[train]'"


def accuracy(labels: Any, predictions: Any) -> float:
    """The share of predictions that are right."""
    return float((labels == predictions).mean())


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled rows: `inputs` by the program's names, each (rows, …), and `labels` (rows), class numbers.

    `lengths` (rows) says how long each row is where they are padded along dimension 1: a batch is then cut to its longest.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        counts = {name: len(value) for name, value in self.inputs.items()} | {"labels": len(self.labels)}
        if len(set(counts.values())) != 1:
            raise UsageError(f"inputs and labels must have equally many rows, got {counts}")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Sequence[int] | Tensor) -> Examples:
        """Some of the rows."""
        chosen = torch.as_tensor(index)
        inputs = {name: value[chosen] for name, value in self.inputs.items()}
        return Examples(inputs, self.labels[chosen], None if self.lengths is None else self.lengths[chosen])

    def split(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Shuffled by a seed, and cut in two: the first has `share` of the rows."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        cut = round(share * len(self))
        if not 0 < cut < len(self):
            raise UsageError(f"{share:g} of {len(self)} rows is none or all; both parts need some")
        return self.rows(order[:cut]), self.rows(order[cut:])

    def digest(self) -> str:
        """Equal for equal rows."""
        found = hashlib.sha256()
        for name, value in sorted({**self.inputs, "": self.labels}.items()):
            found.update(f"{name} {tuple(value.shape)}".encode())
            found.update(raw(value))
        return found.hexdigest()[:12]


def encoded(
    tokenizer: Any, texts: Sequence[str], labels: Sequence[int], program: Program, length: int = 128
) -> Examples:
    """Texts as a program takes them; `tokenizer` is called as those of transformers are, `length` is the most tokens of a row.

    A program whose length is fixed gets rows of that length.
    """
    names = program.input_names()
    fixed = _fixed_length(program)
    made = tokenizer(
        list(texts),
        padding="max_length" if fixed else "longest",
        truncation=True,
        max_length=fixed or length,
        return_tensors="pt",
        return_attention_mask=True,
        return_token_type_ids="token_type_ids" in names,
    )
    missing = [name for name in names if name not in made]
    if missing:
        raise UsageError(
            f"the tokenizer makes {', '.join(made)}, and the program wants {missing[0]!r} as well"
        )
    inputs = {name: made[name] for name in names}
    return Examples(inputs, torch.tensor(list(labels)), None if fixed else made["attention_mask"].sum(dim=1))


def _fixed_length(program: Program) -> int | None:
    """The number of columns of the first input where it is no free dimension."""
    name = program.input_names()[0]
    example = next(value for value in program.flat_inputs() if isinstance(value, Tensor))
    return None if 1 in program.free_dims().get(name, ()) else int(example.shape[1])


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune: AdamW, learning rate down to 0 in a line; the defaults are those of Greedy-layer Pruning (arXiv 2105.14839)."""

    epochs: int = 3
    learning_rate: float = 2e-5
    batch_size: int = 32
    warmup: float = 0.0  #: share of the steps in which the learning rate rises
    weight_decay: float = 0.0
    seed: int = 0  #: of the order of rows, and of dropout
    precision: str = "no"  #: of Accelerate: no, bf16 or fp16

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at a step, as a share of the highest."""
        rising = self.warmup * steps
        return step / rising if step < rising else max(0.0, (steps - step) / max(1.0, steps - rising))


def fine_tune(program: Program, examples: Examples, recipe: Recipe, output: str = "logits") -> nn.Module:
    """A trained copy of the program as a module in eval mode; cross-entropy on one output, (rows, classes)."""
    accelerator = _accelerator(program, recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = program.module().train()
        for parameter in module.parameters():
            parameter.requires_grad_()
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        loader = _loader(examples, recipe)
        steps = recipe.epochs * len(loader)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate(step, steps))
        ready, optimizer, loader, schedule = accelerator.prepare(module, optimizer, loader, schedule)
        for _ in range(recipe.epochs):
            for inputs, labels in loader:
                loss = nn.functional.cross_entropy(_output(program, ready(**inputs), output), labels)
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    trained: nn.Module = accelerator.unwrap_model(ready, keep_fp32_wrapper=False)
    return trained.eval()


def predicted(
    program: Program, module: nn.Module, examples: Examples, batch_size: int = 64, output: str = "logits"
) -> Tensor:
    """What a module of this program answers, (rows): the class with the highest output."""
    device = next(iter(program.parameters().values())).device
    order = range(len(examples)) if examples.lengths is None else examples.lengths.argsort().tolist()
    found = torch.empty(len(examples), dtype=torch.long)
    with torch.no_grad():
        for first in range(0, len(order), batch_size):
            index = list(order[first : first + batch_size])
            inputs, _ = _batch(examples, index)
            outputs = module(**{name: value.to(device) for name, value in inputs.items()})
            found[index] = _output(program, outputs, output).argmax(dim=-1).cpu()
    return found


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


def _accelerator(program: Program, recipe: Recipe) -> Any:
    """Training runs where the weights are: the graph names its device."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise UsageError(NEEDS.format(error)) from error
    device = next(iter(program.parameters().values())).device
    return Accelerator(cpu=device.type == "cpu", mixed_precision=recipe.precision)


class _Batches:
    """Row numbers in batches, anew in every epoch: shuffled, sorted by length within every 16 batches, and the batches shuffled again.

    Rows of like length share a batch, which saves padding: on TREC nearly half of the work.
    """

    CHUNK = 16

    def __init__(self, examples: Examples, recipe: Recipe) -> None:
        self.lengths = torch.zeros(len(examples)) if examples.lengths is None else examples.lengths
        self.batch_size = recipe.batch_size
        self.random = torch.Generator().manual_seed(recipe.seed)

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths), generator=self.random)
        alike = [
            part[self.lengths[part].argsort(stable=True)]
            for part in order.split(self.batch_size * self.CHUNK)
        ]
        batches = [batch.tolist() for part in alike for batch in part.split(self.batch_size)]
        yield from (batches[i] for i in torch.randperm(len(batches), generator=self.random).tolist())


def _loader(examples: Examples, recipe: Recipe) -> Any:
    rows: Any = range(len(examples))
    return DataLoader(
        rows, batch_sampler=_Batches(examples, recipe), collate_fn=lambda index: _batch(examples, index)
    )


def _batch(examples: Examples, index: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
    rows = examples.rows(index)
    longest = math.inf if rows.lengths is None else int(rows.lengths.max())
    cut = {
        name: value if value.ndim < 2 or longest > value.shape[1] else value[:, : int(longest)]
        for name, value in rows.inputs.items()
    }
    return cut, rows.labels


def _output(program: Program, outputs: Any, name: str) -> Tensor:
    value = pytree.tree_leaves(outputs, is_leaf=lambda x: x is None)[program.output_names().index(name)]
    assert isinstance(value, Tensor)
    return value.float()
