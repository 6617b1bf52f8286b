"""Task tokenization: words with tags, questions about contexts, and running text as examples.

Single texts and pairs are tokenized by `fxprune.training.examples.encoded`. Tokenizers must be fast ones of transformers, which give the
word, and the characters, that a token comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.training import Examples
from fxprune.training.examples import IGNORED, examples, fixed_length, tokenized


def encode_tags(
    tokenizer: Any,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[int]],
    program: Program,
    length: int = 128,
) -> Examples:
    """Return words and their class numbers as examples; the first token of a word has its class, others are ignored."""
    for i, (row, classes) in enumerate(zip(words, tags, strict=True)):
        if len(row) != len(classes):
            raise UsageError(f"row {i} has {len(row)} words and {len(classes)} tags; each word needs one")
    made = tokenized(tokenizer, [list(row) for row in words], program, length, is_split_into_words=True)
    labels = torch.full(made["attention_mask"].shape, IGNORED)
    for i, classes in enumerate(tags):
        for place, word in _first_tokens(made.word_ids(i)):
            labels[i, place] = classes[word]
    return examples(made, labels, program, by_token=True)


def _first_tokens(words: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Yield (position, word index) of the first token of each word."""
    before = None
    for place, word in enumerate(words):
        if word is not None and word != before:
            yield place, word
        before = word


def encode_text(tokenizer: Any, texts: Sequence[str], program: Program, length: int = 128) -> Examples:
    """Return texts as examples: joined, and cut into rows of `length` tokens; the label of a token is the next one of its row."""
    length = fixed_length(program) or length
    with_ends = [text + (tokenizer.eos_token or "") for text in texts if text.strip()]
    ids = [i for row in tokenizer(with_ends, add_special_tokens=False)["input_ids"] for i in row]
    count = len(ids) // length
    if not count:
        raise UsageError(f"the texts have {len(ids)} tokens; one row needs {length}")
    rows = torch.tensor(ids[: count * length]).reshape(count, length)
    labels = torch.cat([rows[:, 1:], torch.full((count, 1), IGNORED)], 1)
    made = {
        "input_ids": rows,
        "attention_mask": torch.ones_like(rows),
        "token_type_ids": torch.zeros_like(rows),
        "position_ids": torch.arange(length).expand(count, -1),
    }
    return examples(made, labels, program, by_token=True)


Answers: TypeAlias = Sequence[tuple[str, int]]
"""The answers to a question: text, and the character of the context where it starts."""


@dataclass(frozen=True, eq=False)
class Questions:
    """Windows over contexts, as examples whose labels are (rows, 2): the tokens where the answer starts and ends, 0 where it is elsewhere.

    `rows` are the questions that the windows belong to, `offsets` (rows, length, 2) the characters of each token of the context; other
    tokens have -1.
    """

    examples: Examples
    rows: Tensor
    offsets: Tensor
    contexts: Sequence[str]
    answers: Sequence[Answers]

    def texts(self, said: Iterable[tuple[Tensor, Tensor]], most: int = 30) -> list[str]:
        """Return the answers to the questions, at most `most` tokens each.

        `said` are row numbers and logits of starts and ends, (rows, 2, length).
        """
        found: dict[int, tuple[float, str]] = {}
        for index, logits in said:
            spans = self._spans(index, logits, most)
            for row, (score, first, last) in zip(index.tolist(), spans, strict=True):
                question = int(self.rows[row])
                start, end = int(self.offsets[row, first, 0]), int(self.offsets[row, last, 1])
                text = self.contexts[question][start:end]
                if question not in found or score > found[question][0]:
                    found[question] = score, text
        return [found.get(question, (0.0, ""))[1] for question in range(len(self.contexts))]

    def _spans(self, index: Tensor, logits: Tensor, most: int) -> list[tuple[float, int, int]]:
        """Return (score, first token, last token) of each row's best span within the context."""
        length = logits.shape[-1]
        inside = self.offsets[index, :length, 0] >= 0
        start, end = (logits[:, i].masked_fill(~inside, -torch.inf) for i in (0, 1))
        wide = torch.arange(length)[None, :] - torch.arange(length)[:, None]
        scores = start[:, :, None] + end[:, None, :]
        top, place = scores.masked_fill((wide < 0) | (wide >= most), -torch.inf).flatten(1).max(1)
        return [(float(s), *divmod(int(p), length)) for s, p in zip(top, place, strict=True)]


def encode_questions(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Answers],
    program: Program,
    length: int = 384,
    stride: int | None = None,
) -> Questions:
    """Return questions about contexts, with answers that are parts of these, as windows.

    A context that is too long gives several windows, each with `stride` tokens of the one before (by default a third of `length`).
    """
    pairs = [(question.strip(), context) for question, context in zip(questions, contexts, strict=True)]
    made = tokenized(
        tokenizer, pairs, program, length, truncation="only_second", stride=length // 3 if stride is None else stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    rows = torch.as_tensor(made["overflow_to_sample_mapping"])
    offsets = torch.as_tensor(made["offset_mapping"]).clone()
    outside = [[part != 1 for part in made.sequence_ids(row)] for row in range(len(rows))]
    offsets[torch.tensor(outside)] = -1
    labels = torch.tensor([_span(offsets[row], answers[int(of)]) for row, of in enumerate(rows)])
    return Questions(examples(made, labels, program), rows, offsets, contexts, answers)


def _span(offsets: Tensor, answers: Answers) -> tuple[int, int]:
    """Return the first and last token of the first answer; (0, 0) where it is not whole in this window."""
    if not answers:
        return 0, 0
    text, first = answers[0]
    last = first + len(text)
    starts = ((offsets[:, 0] >= 0) & (offsets[:, 0] <= first) & (offsets[:, 1] > first)).nonzero()
    ends = ((offsets[:, 0] >= 0) & (offsets[:, 0] < last) & (offsets[:, 1] >= last)).nonzero()
    return (int(starts[0]), int(ends[0])) if len(starts) and len(ends) else (0, 0)
