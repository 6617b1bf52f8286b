"""Folders of `datasets`: columns by the names of inputs, and columns of images, sounds and texts for the inputs that are left."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from torch import Tensor, nn
from torch.export import Dim

from fxprune import Program, capture
from fxprune.errors import UsageError
from fxprune.ir import quiet
from fxprune.tools.inputs.calibration.forms import check_source, read_calibration
from fxprune.tools.inputs.calibration.request import Asked
from fxprune.tools.inputs.loaded import Loaded

datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
pytest.importorskip("optimum")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "dog", "runs", "home"]
NONE = Loaded("py:somewhere:net", nn.Identity())


class Both(nn.Module):
    def forward(self, input_ids: Tensor, picture: Tensor) -> Tensor:
        return input_ids.float().sum() + picture.sum()


class Linear(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y.sum()


@pytest.fixture(scope="module")
def both() -> Program:
    """Takes token ids of any length, and pictures of 3×8×8."""
    kwargs = {"input_ids": torch.ones(2, 5, dtype=torch.long), "picture": torch.randn(2, 3, 8, 8)}
    return capture(Both(), (), kwargs, {"input_ids": {0: Dim.AUTO, 1: Dim.AUTO}, "picture": {0: Dim.AUTO}})


@pytest.fixture(scope="module")
def linear() -> Program:
    kwargs = {"x": torch.randn(2, 4), "y": torch.randn(2)}
    return capture(Linear(), (), kwargs, {name: {0: Dim.AUTO} for name in kwargs})


@pytest.fixture
def reader(tmp_path: Path) -> Loaded:
    """A folder with a tokenizer: a text of n words has n + 2 tokens."""
    with quiet():
        vocabulary = {word: i for i, word in enumerate(WORDS)}
        transformers.BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path / "model")
    return Loaded(f"hf:{tmp_path / 'model'}", nn.Identity())


def saved(place: Path, columns: dict[str, Any], **features: Any) -> str:
    with quiet():
        table = datasets.Dataset.from_dict(columns)
        for name, feature in features.items():
            table = table.cast_column(name, feature)
        table.save_to_disk(place / "data")
    return str(place / "data")


def refused(sentence: str, folder: str, program: Program, loaded: Loaded = NONE, **options: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        read_calibration(Asked(folder, **options), program, loaded)


def picture(red: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (20, 10), (red, 0, 0)).save(held, "png")
    return held.getvalue()


def test_columns_are_matched_by_name(linear: Program, tmp_path: Path) -> None:
    rows = np.arange(40.0).reshape(10, 4)
    folder = saved(
        tmp_path, {"label": [0] * 10, "y": list(range(10)), "x": rows.tolist()}, y=datasets.Value("float64")
    )
    check_source(Asked(folder), "py:a:b")
    found = read_calibration(Asked(folder, rows=5), linear, NONE)
    assert [list(batch) for batch in found.batches] == [["x", "y"]]
    assert found.batches[0]["y"].tolist() == [0, 8, 4, 2, 6]
    assert found.batches[0]["x"][1].tolist() == [32, 33, 34, 35]
    assert found.notes[0] == "calibrated without the columns label, which are no inputs of the model"
    assert sum(len(batch["y"]) for batch in found) == 10


def test_images_and_texts_are_prepared_as_in_folders_and_files(
    both: Program, tmp_path: Path, reader: Loaded
) -> None:
    cells = [
        {"bytes": picture(255), "path": None},
        {"bytes": b"broken", "path": None},
        {"bytes": picture(0), "path": None},
    ]
    columns = {"photo": cells, "caption": ["the dog", "dog", "red dog runs"]}
    folder = saved(tmp_path, columns, photo=datasets.Image(decode=False))
    found = read_calibration(Asked(folder, normalization="half"), both, reader)
    assert [batch["input_ids"].tolist() for batch in found.batches] == [[[2, 5, 7, 3]], [[2, 6, 7, 8, 3]]]
    assert [float(batch["picture"][0, 0, 0, 0]) for batch in found.batches] == [1, -1]
    assert re.match(
        r"calibrated without what can't be read: row 1 \(cannot identify image file", found.notes[0]
    )


def test_sounds_are_read_from_their_bytes(tmp_path: Path) -> None:
    program = capture(nn.Linear(400, 2), (torch.randn(2, 400),), {}, {"input": {0: Dim.AUTO}})
    wavfile.write(tmp_path / "a.wav", 8000, np.full(200, 2**14, np.int16))
    cells = [{"bytes": (tmp_path / "a.wav").read_bytes(), "path": None}]
    folder = saved(tmp_path, {"heard": cells}, heard=datasets.Audio(decode=False))
    found = read_calibration(Asked(folder, sampling_rate=8000), program, NONE)
    assert found.batches[0]["input_1"][0, [0, 199, 200]].tolist() == [0.5, 0.5, 0]
    refused("say how many samples in a second", folder, program)


def test_what_does_not_fit_is_a_sentence(
    linear: Program, both: Program, tmp_path: Path, reader: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = saved(tmp_path / "1", {"a": [1.0], "b": ["x"]})
    refused(f"{first} has the columns a, b, and the model takes x 2×4, y 2: rename columns", first, linear)
    second = saved(tmp_path / "2", {"x": [[1.0] * 4]})
    refused("calibration batch 1 lacks 'y'", second, linear)
    third = saved(tmp_path / "3", {"one": ["dog"], "two": ["dog"]})
    refused(f"{third} has several columns of texts (one, two): keep the one", third, both, reader)
    refused(
        "column caption, is text, which needs the tokenizer", saved(tmp_path / "4", {"caption": ["a"]}), both
    )
    with quiet():
        datasets.DatasetDict(train=datasets.load_from_disk(first)).save_to_disk(tmp_path / "parts")
    refused(
        f"holds several parts: name one of {tmp_path / 'parts' / 'train'}", str(tmp_path / "parts"), linear
    )
    fifth = saved(tmp_path / "5", {"x": [[1.0] * 3, [1.0] * 3], "y": [1.0, 2.0]})
    refused("calibration batch 1: x is 2×3, and the program takes batch×4", fifth, linear)
    empty = saved(tmp_path / "6", {"x": []})
    refused(f"{empty} can't be read as a data set", empty, linear)
    (Path(first) / "state.json").write_text("{")
    with pytest.raises(UsageError, match="can't be read as a data set"):
        check_source(Asked(first), "py:a:b")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match=r"is read by the package datasets .*pip install 'fxprune\[train\]'"):
        check_source(Asked(second), "py:a:b")
