"""Models for the tests: tiny transformers by name, and nets of the zoo, with their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune import Program, capture
from zoo.check import randomise
from zoo.nets import build

BATCH, LENGTH = 3, 13
HUGGING_FACE = ("bert", "gpt2", "llama", "resnet")


def hugging_face(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny model of one of the four families, with random weights everywhere, and its inputs."""
    import transformers

    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 99, "max_position_embeddings": 64, "hidden_size": 32}
    layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    made: nn.Module
    if name == "bert":
        made = transformers.BertModel(transformers.BertConfig(**common, **layers))
    elif name == "llama":
        made = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**common, **layers, num_key_value_heads=2)
        )
    elif name == "gpt2":
        sizes: dict[str, Any] = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        made = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    else:
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic", num_channels=2
        )
        made = transformers.ResNetForImageClassification(config)
    randomise(made)
    made.train(mode=False)
    if name == "resnet":
        return made, {"pixel_values": torch.randn(BATCH, 2, 32, 32)}
    ids = torch.randint(0, 99, (BATCH, LENGTH))
    return made, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@cache
def captured(name: str, dynamic: bool = False) -> Program:
    """The program of a model or net, captured once; tests must not write into it."""
    model, inputs = hugging_face(name) if name in HUGGING_FACE else net(name)
    return capture(model, kwargs=inputs, dynamic_shapes=dynamic_shapes(inputs) if dynamic else None)


def dynamic_shapes(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Dynamic shapes: the batch, and the length of tokens."""
    auto = torch.export.Dim.AUTO
    return {name: {0: auto} if value.dim() > 2 else {0: auto, 1: auto} for name, value in inputs.items()}


def net(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A hand-written net with random weights."""
    made, inputs = build(name)
    randomise(made)
    return made.eval(), inputs


def tensors(value: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def distance(ours: Any, theirs: Any) -> float:
    """The largest difference of two results, relative to the largest value of each output; inf where shapes differ."""
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")
    return max((float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs), default=0.0)
