"""Tiny configurations: any `transformers` configuration made small by one table of sizes, and overrides for one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

#: the small size of a field, wherever a configuration has it as a plain number; sizes differ, so that none is taken for another
TINY: dict[str, int] = {
    "vocab_size": 99,
    "type_vocab_size": 2,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "embed_dim": 32,
    "hidden_dim": 32,
    "dim": 32,
    "embedding_size": 28,
    "projection_dim": 20,
    "encoder_hidden_size": 32,
    "decoder_hidden_size": 24,
    "out_hidden_size": 32,
    "output_dim": 32,
    "intermediate_size": 40,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "ffn_dim": 40,
    "d_ff": 40,
    "n_inner": 40,
    "mlp_dim": 40,
    "decoder_intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "depth": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "decoder_num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "q_lora_rank": 18,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 12,
    "v_head_dim": 10,
    "index_head_dim": 8,
    "index_n_heads": 4,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 22,
    "shared_intermediate_size": 22,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 10,
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "num_mel_bins": 16,
    "sliding_window": 8,
}


def tiny_config(kind: type[PretrainedConfig], overrides: Mapping[str, Any]) -> PretrainedConfig:
    """A configuration of this kind with the sizes of `TINY`; `overrides` wins, and a dict in it is for a part of the configuration."""
    default = kind()
    parts = {
        name: _part(default, name, overrides)
        for name in default.sub_configs
        if getattr(default, name, None) is not None
    }
    small = {name: TINY[name] for name, value in vars(default).items() if name in TINY and type(value) is int}
    own = {name: value for name, value in overrides.items() if name not in parts}
    quiet = {"use_cache": False} if "use_cache" in vars(default) else {}
    layers = {**small, **own}.get("num_hidden_layers", 2)
    lists = {
        name: _ends(value, layers)
        for name, value in vars(default).items()
        if _is_per_layer(name, value, default)
    }
    return kind(**{**small, **lists, **quiet, **parts, **own})


def _part(default: PretrainedConfig, name: str, overrides: Mapping[str, Any]) -> PretrainedConfig:
    return tiny_config(type(getattr(default, name)), overrides.get(name, {}))


def _is_per_layer(name: str, value: Any, default: PretrainedConfig) -> bool:
    layers = vars(default).get("num_hidden_layers")
    return (
        isinstance(value, (list, tuple))
        and len(value) == layers
        and name not in default.sub_configs
        and not name.startswith("_")
    )


def _ends(values: Any, count: int) -> list[Any]:
    """The first of a list and its last: where layers differ in kind, both kinds."""
    return [*values[: count - 1], values[-1]]


def tiny_model(
    kind: type[PreTrainedModel], overrides: Mapping[str, Any], limit: int = 4_000_000
) -> PreTrainedModel:
    """A model of this class with a tiny configuration; ValueError where it has more parameters than `limit`."""
    assert kind.config_class is not None
    config = tiny_config(kind.config_class, overrides)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > limit:
        raise ValueError(f"{kind.__name__} has {size} parameters, more than {limit}: give smaller sizes")
    torch.manual_seed(0)
    model: PreTrainedModel = kind(config).eval()
    return model
