"""A tiny model with its tokenizer in a folder, and a task of made-up sentences in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fxprune.ir import quiet

COLOURS, ANIMALS = ("red", "green", "blue", "white"), ("dog", "cat", "horse", "cow")
TRAIN = [
    (f"the {word} thing", kind)
    for i in range(10)
    for kind, words in (("colour", COLOURS), ("animal", ANIMALS))
    for word in words
]


def write(
    folder: Path, train: list[tuple[str, str]], dev: list[tuple[str, str]], suffix: str = ".tsv"
) -> Path:
    for name, rows in (("train", train), ("dev", dev)):
        lines = ["sentence\tlabel", *("\t".join(row) for row in rows)]
        (folder / f"{name}{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "thing", *COLOURS, *ANIMALS]


def saved(folder: Path, kind: str = "BertModel", **settings: Any) -> Path:
    """Save a model of a class of transformers, and a tokenizer with the vocabulary WORDS."""
    import transformers

    model = getattr(transformers, kind)
    config = model.config_class(vocab_size=len(WORDS), **settings)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)  # the same weights, whichever tests ran before
        model(config).save_pretrained(folder)
        transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


BERT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
