"""Configs of pruned models: they have the sizes, or list those that they can't have, and transformers itself reads them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxprune.analysis.layer_sizes import Attention, AxisSize, Layer, LayerSizes, RemainingCount
from fxprune.integrations.huggingface.config import record_sizes

transformers = pytest.importorskip("transformers")

BERT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64
}  # fmt: skip
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 2}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4}


def layer(
    number: int,
    heads: RemainingCount,
    ffn: RemainingCount,
    shared: tuple[int, RemainingCount] | None = None,
    v: RemainingCount = 8,
) -> Layer:
    """One of three layers of four heads with eight dims, and 64 neurons (GPT-2 has 128)."""
    before = 128 if ffn is not None and ffn == 99 else 64
    attention = Attention((4, heads), shared or (4, heads), (8, 8), (8, v))
    return Layer(
        f"layer.{number}", False, (AxisSize(f"{number}.ffn", "ffn", before, ffn),), (attention,), {"attention": False, "mlp": False}
    )  # fmt: skip


def gone(number: int, *parts: str) -> Layer:
    """A layer that has lost some of its parts, or, without any, is gone itself."""
    branches = {name: not parts or name in parts for name in ("attention", "mlp")}
    whole = layer(number, 4, 64)
    return Layer(whole.name, not parts, whole.sizes, whole.attentions, branches)


def read_back(
    config: Any, layers: list[Layer], place: Path, rest: tuple[AxisSize, ...] = ()
) -> tuple[Any, dict[str, Any]]:
    """The config as transformers reads it from a folder, and its file."""
    record_sizes(config, LayerSizes(tuple(layers), rest), "fxprune.json").save_pretrained(place)
    return transformers.AutoConfig.from_pretrained(place), json.loads((place / "config.json").read_text())


def test_layers_that_are_alike_have_one_size(tmp_path: Path) -> None:
    config, told = read_back(transformers.BertConfig(**BERT), [layer(i, 3, 16) for i in range(3)], tmp_path)
    assert (config.num_attention_heads, config.head_dim, config.intermediate_size) == (3, 8, 16)
    assert "per_layer_config" not in told
    assert told["fxprune"] == {"manifest": "fxprune.json", "untold": []}


def test_layers_that_differ_have_their_own_and_no_reader_gets_the_one_of_all(tmp_path: Path) -> None:
    layers = [layer(0, 3, 16), layer(1, 4, 16), layer(2, 2, 16)]
    config, told = read_back(transformers.BertConfig(**BERT), layers, tmp_path)
    assert [one.num_attention_heads for one in config.per_layer_config] == [3, 4, 2]
    assert [one.head_dim for one in config.per_layer_config] == [8, 8, 8]
    assert config.intermediate_size == 16
    assert told["per_layer_config"] == {"0": {"num_attention_heads": 3}, "2": {"num_attention_heads": 2}}
    with pytest.raises(RuntimeError, match="'num_attention_heads' is a per-layer attribute"):
        _ = config.num_attention_heads


def test_heads_of_keys_and_values_have_their_attribute(tmp_path: Path) -> None:
    layers = [layer(0, 2, 64, (2, 1)), layer(1, 4, 64, (2, 2)), layer(2, 4, 64, (2, 2))]
    config, _ = read_back(transformers.LlamaConfig(**LLAMA), layers, tmp_path)
    found = [(one.num_attention_heads, one.num_key_value_heads) for one in config.per_layer_config]
    assert found == [(2, 1), (4, 2), (4, 2)]


def test_a_name_that_maps_to_another_is_a_per_layer_attribute_under_both(tmp_path: Path) -> None:
    layers = [Layer(f"h.{i}", False, (AxisSize("ffn", "ffn", 128, 100 + i),), ()) for i in range(3)]
    config, told = read_back(transformers.GPT2Config(**GPT), layers, tmp_path)
    assert [one.n_inner for one in config.per_layer_config] == [100, 101, 102]
    layers = [layer(i, i + 1, 64) for i in range(3)]
    config, told = read_back(transformers.GPT2Config(**GPT), layers, tmp_path)
    assert told["per_layer_config"]["0"] == {"n_head": 1}
    with pytest.raises(RuntimeError, match="'n_head' is a per-layer attribute"):
        _ = config.num_attention_heads


def test_parts_that_are_gone_are_skipped(tmp_path: Path) -> None:
    layers = [gone(0, "mlp"), layer(1, 4, 64), gone(2)]
    config, told = read_back(transformers.BertConfig(**BERT), layers, tmp_path)
    assert told["per_layer_config"] == {"0": {"skip": ["mlp"]}, "2": {"skip": ["attention", "mlp"]}}
    assert [one.skip for one in config.per_layer_config] == [["mlp"], [], ["attention", "mlp"]]
    assert told["fxprune"]["untold"] == []
    assert config.num_hidden_layers == 3


def test_the_width_of_the_stream_is_said(tmp_path: Path) -> None:
    rest = (AxisSize("hidden", "hidden", 32, 24),)
    config, _ = read_back(transformers.GPT2Config(**GPT), [layer(i, 4, 99) for i in range(3)], tmp_path, rest)
    assert config.hidden_size == 24
    assert config.head_dim == 8  # 24 dims by 4 heads would be 6


def test_dims_of_heads_that_differ_are_added_one_for_queries_and_one_for_values(tmp_path: Path) -> None:
    layers = [layer(0, 4, 64, v=4), layer(1, 4, 64, v=[1, 3, 8, 8]), layer(2, 4, 64)]
    config, told = read_back(transformers.BertConfig(**BERT), layers, tmp_path)
    assert [one.v_head_dim for one in config.per_layer_config] == [4, [1, 3, 8, 8], 8]
    assert (config.qk_head_dim, told["fxprune"]["untold"]) == (8, [])
    _, told = read_back(
        transformers.LlamaConfig(**LLAMA, head_dim=8),
        [layer(i, 4, 64, (2, 2), v=4) for i in range(3)],
        tmp_path,
    )
    assert told["v_head_dim"] == 4
    assert told["fxprune"]["untold"] == [
        "head_dim is still 8: query and value dims of a head are not that any more"
    ]


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ([layer(i, 4, [3, 4]) for i in range(3)], "neurons have changed in layer.0, layer.1, layer.2"),
        ([layer(0, 4, 64), layer(1, 3, 64)], "attention heads have changed in layer.1"),
        ([layer(0, 4, 64), gone(1)], "layer.1 is gone"),
        ([layer(0, None, 64), layer(1, 4, 64), layer(2, 4, 64)], "attention heads have changed in layer.0"),
    ],
)  # fmt: skip
def test_what_the_config_can_not_say_is_said(layers: list[Layer], sentence: str, tmp_path: Path) -> None:
    plain = transformers.BertConfig(**BERT)
    config, told = read_back(plain, layers, tmp_path)
    assert sentence in told["fxprune"]["untold"]
    assert (config.num_attention_heads, config.intermediate_size) == (4, 64)
    assert "per_layer_config" not in told


def test_what_the_class_refuses_is_not_said(tmp_path: Path) -> None:
    layers = [layer(i, 3, 48, (3, 3)) for i in range(3)]
    config, told = read_back(
        transformers.LlamaConfig(**{**LLAMA, "num_key_value_heads": 4}), layers, tmp_path
    )
    assert told["fxprune"]["untold"][0] == "attention heads have changed in layer.0, layer.1, layer.2"
    assert (config.num_attention_heads, config.intermediate_size) == (4, 48)


def test_the_config_that_was_given_stays_as_it_is() -> None:
    config = transformers.BertConfig(**BERT)
    before = config.to_json_string()
    record_sizes(config, LayerSizes((layer(0, 1, 1), layer(1, 2, 2), gone(2)), ()), "fxprune.json")
    assert config.to_json_string() == before
