"""Examples: labelled rows in the form of a program's inputs, and batches of rows of similar length."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.ir.tensors import tensor_bytes

IGNORED = -100
"""Label of a position that is ignored, the default `ignore_index` of torch's cross-entropy."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled rows: `inputs` by the program's names, each (rows, …), and `labels` (rows, …), class numbers or IGNORED.

    `lengths` (rows) are the lengths of the rows where these are padded along dimension 1: a batch is then cut to its longest row, unless
    `fixed`. With `by_token`, labels are (rows, length) and are cut, too. UsageError where the numbers of rows differ.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    lengths: Tensor | None = None
    by_token: bool = False
    fixed: bool = False

    def __post_init__(self) -> None:
        counts = {name: len(value) for name, value in self.inputs.items()} | {"labels": len(self.labels)}
        if len(set(counts.values())) != 1:
            raise UsageError(f"inputs and labels must have equally many rows, got {counts}")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Sequence[int] | Tensor) -> Examples:
        """Return some of the rows."""
        chosen = torch.as_tensor(index)
        inputs = {name: value[chosen] for name, value in self.inputs.items()}
        lengths = None if self.lengths is None else self.lengths[chosen]
        return replace(self, inputs=inputs, labels=self.labels[chosen], lengths=lengths)

    def split(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """Return two parts of the rows, shuffled by a seed: the first has a `share` of them; UsageError where one would be empty."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        cut = round(share * len(self))
        if not 0 < cut < len(self):
            raise UsageError(f"{share:g} of {len(self)} rows is none or all; both parts need some")
        return self.rows(order[:cut]), self.rows(order[cut:])

    def digest(self) -> str:
        """Return a hash of inputs and labels, equal for equal rows."""
        found = hashlib.sha256()
        for name, value in sorted({**self.inputs, "": self.labels}.items()):
            found.update(f"{name} {tuple(value.shape)}".encode())
            found.update(tensor_bytes(value))
        return found.hexdigest()[:12]

    def batch(self, index: Sequence[int] | Tensor) -> TrainingBatch:
        """Return some of the rows as a batch, cut to the longest of them."""
        rows = self.rows(index)
        longest = math.inf if rows.lengths is None or self.fixed else int(rows.lengths.max())
        inputs = {name: _cut(value, longest) for name, value in rows.inputs.items()}
        labels = _cut(rows.labels, longest) if self.by_token else rows.labels
        return inputs, labels, torch.as_tensor(index)


TrainingBatch = tuple[dict[str, Tensor], Tensor, Tensor]
"""(inputs by name, labels, indices of the rows)."""


def _cut(value: Tensor, longest: float) -> Tensor:
    return value if value.ndim < 2 or longest > value.shape[1] else value[:, : int(longest)]


class Batches:
    """Batch sampler: rows shuffled by a seed and `epoch`, sorted by length within every 16 batches, and the batches shuffled again.

    Rows of similar length share a batch, which saves padding: on TREC nearly half of the work.
    """

    CHUNK = 16

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self.lengths = torch.zeros(len(examples)) if examples.lengths is None else examples.lengths
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order = torch.randperm(len(self.lengths), generator=random)
        parts = order.split(self.batch_size * self.CHUNK)
        alike = [part[self.lengths[part].argsort(stable=True)] for part in parts]
        batches = [batch.tolist() for part in alike for batch in part.split(self.batch_size)]
        yield from (batches[i] for i in torch.randperm(len(batches), generator=random).tolist())


def loader(examples: Examples, batches: Batches) -> Any:
    """Return the DataLoader for Accelerate to prepare: each item is a TrainingBatch.

    A DataLoader draws a random number whenever an iteration starts: from a generator of its own, so that the other random numbers of a
    resumed run are those of an uninterrupted one.
    """
    rows: Any = range(len(examples))
    random = torch.Generator().manual_seed(0)
    return DataLoader(rows, batch_sampler=batches, collate_fn=examples.batch, generator=random)


def encoded(
    tokenizer: Any,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    labels: Sequence[int],
    program: Program,
    length: int = 128,
) -> Examples:
    """Return examples of tokenised texts, or pairs of texts, for a program; `length` is the largest number of tokens in a row.

    `tokenizer` is called as those of transformers are. A program whose length is fixed gets rows of that length.
    """
    made = tokenized(tokenizer, list(texts), program, length)
    return examples(made, torch.tensor(list(labels)), program)


def examples(made: Mapping[str, Any], labels: Tensor, program: Program, by_token: bool = False) -> Examples:
    """Return examples of a tokenizer's outputs: the inputs that the program takes, with lengths from the attention mask.

    UsageError where the tokenizer does not make one of them.
    """
    missing = [name for name in program.input_names() if name not in made]
    if missing:
        raise UsageError(
            f"the tokenizer makes {', '.join(made)}, and the program wants {missing[0]!r} as well"
        )
    inputs = {name: made[name] for name in program.input_names()}
    fixed = fixed_length(program) is not None
    return Examples(inputs, labels, made["attention_mask"].sum(dim=1), by_token, fixed)


def tokenized(tokenizer: Any, texts: Sequence[Any], program: Program, length: int, **more: Any) -> Any:
    """Return the tokenizer's outputs as tensors; rows of at most `length` tokens, or of the program's fixed length."""
    fixed = fixed_length(program)
    return tokenizer(
        list(texts),
        padding="max_length" if fixed else "longest",
        truncation=more.pop("truncation", True),
        max_length=fixed or length,
        return_tensors="pt",
        return_attention_mask=True,
        return_token_type_ids="token_type_ids" in program.input_names(),
        **more,
    )


def fixed_length(program: Program) -> int | None:
    """Return the number of columns of the first input; None where it is a free dimension."""
    name = program.input_names()[0]
    example = next(value for value in program.flat_inputs() if isinstance(value, Tensor))
    return None if 1 in program.free_dims().get(name, ()) else int(example.shape[1])
