"""Sharded checkpoints of Llama's shapes with random weights, made on disk shard by shard: no more than a shard is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fxprune.tools.inputs.huggingface import import_transformers, quiet_libraries

_SHARD = 400_000_000
"""Bytes after which a shard is written."""


@dataclass(frozen=True)
class LlamaShape:
    """A Llama's shape: layers, width, neurons, heads, heads of keys and values, tokens; weights are float32."""

    layers: int
    width: int
    neurons: int
    heads: int
    key_heads: int
    tokens: int


#: name: shape
SHAPES: dict[str, LlamaShape] = {
    "7B": LlamaShape(32, 4096, 11008, 32, 32, 32000),
    "1.1B": LlamaShape(22, 2048, 5632, 32, 4, 32000),
    **{f"{layers} layers": LlamaShape(layers, 768, 2048, 12, 4, 8000) for layers in (6, 12, 24, 48)},
}


def made_checkpoint(name: str, folder: Path) -> Path:
    """Return the folder of a checkpoint of a shape, made where it is not there yet; about 4.4 GB for 1.1 billion parameters."""
    made = folder / name.replace(" ", "-")
    if (made / "model.safetensors.index.json").exists():
        return made
    made.mkdir(parents=True, exist_ok=True)
    model, shape = meta_model(name), SHAPES[name]
    with quiet_libraries():
        model.config.save_pretrained(made)
    index: dict[str, str] = {}
    total = 0
    for place, shard in enumerate(_shards(model.state_dict())):
        file = f"model-{place + 1:05d}.safetensors"
        save_file(shard, made / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
        total += sum(value.nbytes for value in shard.values())
    told = {"metadata": {"total_size": total, "shape": asdict(shape)}, "weight_map": index}
    (made / "model.safetensors.index.json").write_text(json.dumps(told), encoding="utf-8")
    return made


def meta_model(name: str) -> Any:
    """Return a model of a shape on the meta device: it has sizes, and no weights."""
    transformers, shape = import_transformers(), SHAPES[name]
    config = transformers.LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        vocab_size=shape.tokens,
        use_cache=False,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    with torch.device("meta"), quiet_libraries():
        return transformers.LlamaForCausalLM(config).eval()


def _shards(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield random weights of the sizes of a state dict, so large that values keep their size from layer to layer."""
    random = torch.Generator().manual_seed(0)
    shard: dict[str, Tensor] = {}
    for name, like in state.items():
        matrix = like.ndim > 1
        shard[name] = (
            torch.randn(like.shape, generator=random) * like.shape[-1] ** -0.5
            if matrix
            else torch.ones(like.shape)
        )
        if sum(value.nbytes for value in shard.values()) > _SHARD:
            yield shard
            shard = {}
    if shard:
        yield shard
