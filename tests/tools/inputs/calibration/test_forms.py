"""`--calibration`: text for the model's tokenizer, arrays in files, and functions; unreadable data are refused in a sentence."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from fxprune import Program, capture
from fxprune.calibration import Calibration
from fxprune.errors import UsageError
from fxprune.ir import quiet
from fxprune.tools.inputs import models
from fxprune.tools.inputs.calibration.forms import read_calibration
from fxprune.tools.inputs.calibration.request import Asked
from fxprune.tools.inputs.loaded import Loaded

transformers = pytest.importorskip("transformers")
pytest.importorskip("optimum")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "dog", "runs", "home"]
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
NONE = Loaded("py:somewhere:net", nn.Identity())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A BERT with its tokenizer: a text of n words has n + 2 tokens."""
    place = tmp_path_factory.mktemp("bert")
    with quiet():
        config = transformers.BertConfig(**SIZES, vocab_size=len(WORDS), max_position_embeddings=16)
        transformers.BertModel(config).save_pretrained(place)
        vocabulary = {word: i for i, word in enumerate(WORDS)}
        transformers.BertTokenizer(vocab=vocabulary).save_pretrained(place)
    return models.load(f"hf:{place}")


@pytest.fixture(scope="module")
def program(bert: Loaded) -> Program:
    return bert.capture()


@pytest.fixture(scope="module")
def exact(bert: Loaded) -> Program:
    """Takes two texts of five tokens at once."""
    kwargs = {name: value[:2, :5] for name, value in bert.kwargs.items()}
    return replace(bert, kwargs=kwargs, dynamic_shapes=None).capture()


@pytest.fixture(scope="module")
def linear() -> Program:
    """Takes any number of rows x and y; both are four numbers."""
    auto = {0: Dim.AUTO}
    example = torch.rand(3, 4)
    return capture(Sum(), kwargs={"x": example, "y": example}, dynamic_shapes={"x": auto, "y": auto})


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def written(place: Path, *texts: str) -> str:
    path = place / "texts.txt"
    path.write_bytes("\n".join(texts).encode("utf-8-sig"))
    return str(path)


def shapes(found: Calibration, name: str) -> list[tuple[int, ...]]:
    return [tuple(batch[name].shape) for batch in found.batches]


def read(text: str, program: Program, loaded: Loaded, rows: int, length: int) -> Calibration:
    return read_calibration(Asked(text, rows, length), program, loaded)


def refused(sentence: str, *arguments: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        read(*arguments)


def test_texts_become_batches_of_equal_length(bert: Loaded, program: Program, tmp_path: Path) -> None:
    texts = written(tmp_path, "the dog", "  ", "the red dog runs home", "", "red dog\r", "home")
    found = read(texts, program, bert, 0, 6)
    assert found.rows == 4
    assert [batch["input_ids"].tolist() for batch in found.batches] == [
        [[2, 5, 6, 7, 8, 3]], [[2, 5, 7, 3], [2, 6, 7, 3]], [[2, 9, 3]]
    ]  # fmt: skip
    assert sorted(found.batches[0]) == ["attention_mask", "input_ids", "token_type_ids"]
    assert all(bool(batch["attention_mask"].all()) for batch in found.batches)
    assert shapes(read(texts, program, bert, 2, 128), "input_ids") == [(1, 7), (1, 4)]


def test_a_batch_of_texts_has_at_most_32_rows(bert: Loaded, program: Program, tmp_path: Path) -> None:
    texts = written(tmp_path, *["the dog"] * 300)
    assert shapes(read(texts, program, bert, 33, 8), "input_ids") == [(32, 4), (1, 4)]
    assert read(texts, program, bert, 0, 8).rows == 300


def test_a_decoder_needs_no_padding(bert: Loaded, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=len(WORDS))
    ids = torch.randint(0, 9, (3, 6))
    auto = {0: Dim.AUTO, 1: Dim.AUTO}
    kwargs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    program = capture(transformers.GPT2LMHeadModel(config).eval(), (), kwargs, dict.fromkeys(kwargs, auto))
    found = read(written(tmp_path, "the dog", "red dog", "home"), program, bert, 0, 8)
    assert shapes(found, "attention_mask") == [(2, 4), (1, 3)]


def test_fixed_sizes_take_the_texts_that_fill_them(bert: Loaded, exact: Program, tmp_path: Path) -> None:
    long = ("the red dog", "the red dog runs home", "red dog runs")
    found = read(written(tmp_path, "the dog", *long), exact, bert, 1, 128)
    assert [batch["input_ids"].tolist() for batch in found.batches] == [[[2, 5, 6, 7, 3], [2, 5, 6, 7, 3]]]
    short = written(tmp_path, "the dog")
    refused(
        f"no text in {short} has 5 tokens, the fixed length of the model; give longer",
        short,
        exact,
        bert,
        0,
        9,
    )
    refused(
        "the model takes exactly 2 texts of equal length at once, and",
        written(tmp_path, long[0]), exact, bert, 0, 9,
    )  # fmt: skip


def test_inputs_that_the_tokenizer_does_not_make_are_missed_where_they_are_read(
    bert: Loaded, tmp_path: Path, linear: Program
) -> None:
    class Placed(nn.Module):
        def forward(self, input_ids: Tensor, position_ids: Tensor, unread: Tensor) -> Tensor:
            return input_ids + position_ids if self.reads else 2 * input_ids

        def __init__(self, reads: bool) -> None:
            super().__init__()
            self.reads = reads

    texts, ids = written(tmp_path, "the dog"), torch.ones(2, 5, dtype=torch.long)
    kwargs = dict.fromkeys(("input_ids", "position_ids", "unread"), ids)
    dynamic = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in kwargs}
    found = read(texts, capture(Placed(reads=False), (), kwargs, dynamic), bert, 0, 8)
    assert list(found.batches[0]) == ["input_ids"]
    refused(
        "the tokenizer makes input_ids, attention_mask, and the model takes 'position_ids'; data that hold it:"
        " FILE.npz, FILE.safetensors or py:PACKAGE.MODULE:FUNCTION",
        texts, capture(Placed(reads=True), (), kwargs, dynamic), bert, 0, 8,
    )  # fmt: skip
    refused("and the model takes 'x'", texts, linear, bert, 0, 8)


def test_texts_that_can_not_be_read_are_a_sentence(bert: Loaded, program: Program, tmp_path: Path) -> None:
    refused(
        f"there is no file or folder {tmp_path}/no.txt to calibrate on",
        f"{tmp_path}/no.txt",
        program,
        bert,
        0,
        8,
    )
    refused("holds no text to calibrate on", written(tmp_path, " ", ""), program, bert, 0, 8)
    texts = written(tmp_path, "the red dog runs home " * 9)
    refused("texts must be cut to at least 1 token, got 0", texts, program, bert, 0, 0)
    refused(
        "can't run on the first calibration batch (input_ids 1×20 from 2 to 9,", texts, program, bert, 0, 20
    )
    binary = tmp_path / "data.bin"
    binary.write_bytes(b"\xff\xfe\x00")
    refused(
        f"{binary} is no text in UTF-8; expected a text file (one text a line), FILE.npz",
        str(binary), program, bert, 0, 8,
    )  # fmt: skip


def test_a_model_without_a_tokenizer_takes_no_text(bert: Loaded, program: Program, tmp_path: Path) -> None:
    texts = written(tmp_path, "the dog")
    refused(
        f"{texts} is text, which needs the tokenizer of the model: py:somewhere:net has no tokenizer",
        texts, program, NONE, 0, 8,
    )  # fmt: skip
    with quiet():
        bert.model.save_pretrained(tmp_path / "bare")  # type: ignore[operator, union-attr]
    bare = f"hf:{tmp_path / 'bare'}"
    refused(
        f"{texts} is text, and {bare} has no tokenizer's files beside the weights; add them, or give data",
        texts, program, replace(bert, name=bare), 0, 8,
    )  # fmt: skip


def arrays(rows: int) -> dict[str, Any]:
    return {"x": np.arange(rows * 4.0).reshape(rows, 4), "y": np.ones((rows, 4), np.float32)}


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "NPZ"])
def test_arrays_are_cut_into_batches(linear: Program, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.{suffix}"
    if suffix == "safetensors":
        save_file({name: torch.from_numpy(value) for name, value in arrays(70).items()}, path)
    else:
        with path.open("wb") as file:
            np.savez(file, **arrays(70))
    found = read(str(path), linear, NONE, 0, 0)
    assert shapes(found, "x") == [(32, 4), (32, 4), (6, 4)]
    assert found.batches[2]["x"][0].tolist() == [256, 257, 258, 259]
    assert shapes(read(str(path), linear, NONE, 40, 0), "y") == [(32, 4), (8, 4)]


@pytest.mark.parametrize(("step", "rows", "batches"), [(1, 3, 3), (3, 3, 1), (3, 8, 2)])
def test_batches_of_a_fixed_size_are_full(tmp_path: Path, step: int, rows: int, batches: int) -> None:
    program = capture(Sum(), (torch.rand(step, 4), torch.rand(4)))
    np.savez(tmp_path / "data.npz", x=arrays(rows)["x"], y=np.ones(4))
    found = read(str(tmp_path / "data.npz"), program, NONE, 0, 0)
    assert shapes(found, "x") == [(step, 4)] * batches
    assert shapes(found, "y") == [(4,)] * batches


def test_too_few_rows_for_a_fixed_size_are_told(tmp_path: Path) -> None:
    program = capture(Sum(), (torch.rand(3, 4), torch.rand(3, 4)))
    np.savez(tmp_path / "data.npz", **arrays(2))
    refused(
        "calibration batch 1: x is 2×4, and the program takes 3×4: dimension 0 is fixed and must be 3",
        str(tmp_path / "data.npz"), program, NONE, 0, 0,
    )  # fmt: skip


def test_arrays_that_do_not_fit_are_a_sentence(linear: Program, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=arrays(3)["x"], y=arrays(4)["y"])
    sentence = f"{path}: the first dimension of arrays is their rows, and must be equal, got x 3, y 4"
    refused(sentence, str(path), linear, NONE, 0, 0)
    np.savez(path, arrays(3)["x"])
    refused("batch 1 has 'arr_0', which is no input of the program; it", str(path), linear, NONE, 0, 0)
    np.savez(path, x=arrays(0)["x"], y=arrays(0)["y"])
    refused("there are no calibration data", str(path), linear, NONE, 0, 0)


def test_files_that_are_no_arrays_are_a_sentence_and_nothing_is_unpickled(
    linear: Program, tmp_path: Path
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.array([None], dtype=object), y=arrays(1)["y"])
    for content in (path.read_bytes(), pickle.dumps(arrays(1)), b"no"):
        path.write_bytes(content)
        refused(f"{path} can't be read as arrays of numbers that numpy.savez", str(path), linear, NONE, 0, 0)
    broken = tmp_path / "data.safetensors"
    broken.write_bytes(b"no")
    refused(f"{broken} can't be read as a .safetensors file", str(broken), linear, NONE, 0, 0)


def pairs() -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield torch.ones(4, 4), torch.ones(4, 4)


def failing() -> Iterator[dict[str, Tensor]]:
    yield dict.fromkeys("xy", torch.ones(4, 4))
    raise OSError("the disk is gone")


MODULE = """
import sys
test = sys.modules[{name!r}]
pairs, failing = test.pairs, test.failing
one = lambda: {{"x": 1}}
"""


def test_a_function_gives_batches(linear: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "given_batches.py").write_text(MODULE.format(name=__name__))
    monkeypatch.syspath_prepend(tmp_path)
    assert shapes(read("py:given_batches:pairs", linear, NONE, 10, 0), "y") == [
        (4, 4),
        (4, 4),
        (2, 4),
    ]
    refused(
        "py:given_batches:failing could not be called: OSError: the disk is gone",
        "py:given_batches:failing", linear, NONE, 0, 0,
    )  # fmt: skip
    refused("must be an iterable of batches, got a dict", "py:given_batches:one", linear, NONE, 0, 0)
    refused(
        "py:given_batches:no could not be called: AttributeError", "py:given_batches:no", linear, NONE, 0, 0
    )
    refused("can't read the calibration data 'py:given'; expected py:PACKAGE", "py:given", linear, NONE, 0, 0)
