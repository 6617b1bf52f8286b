"""Models whose compile time is measured: usual architectures of small to medium size with random weights, and a stack of layers."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.tools.benchmarks.coverage import zoo_module

_Inputs = dict[str, Tensor]
_Built = tuple[nn.Module, _Inputs]

_BATCH, _LENGTH, _WORDS = 2, 9, 1000


@dataclass(frozen=True)
class _Transformers:
    """Class of transformers, and its configuration: `shared` for those that are alike, the rest in its own words."""

    name: str
    inputs: Callable[[], _Inputs]
    config: Mapping[str, Any]

    def __call__(self) -> _Built:
        library = importlib.import_module("transformers")
        kind = getattr(library, self.name)
        model: nn.Module = kind(kind.config_class(**self.config))
        return model.eval(), self.inputs()


def _ids() -> Tensor:
    return torch.arange(_BATCH * _LENGTH).reshape(_BATCH, _LENGTH) + 3


def _text() -> _Inputs:
    return {"input_ids": _ids(), "attention_mask": torch.ones(_BATCH, _LENGTH, dtype=torch.int64)}


def _pair() -> _Inputs:
    return {**_text(), "decoder_input_ids": _ids()[:, :-2]}


def _pixels(size: int) -> Callable[[], _Inputs]:
    return lambda: {
        "pixel_values": torch.linspace(-1, 1, _BATCH * 3 * size * size).reshape(_BATCH, 3, size, size)
    }


_BERT = {
    "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": _WORDS,
}  # fmt: skip
_LLAMA = {
    "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512,
    "vocab_size": _WORDS, "use_cache": False,
}  # fmt: skip
_VIT = {
    "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
_BART = {
    "d_model": 256, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "vocab_size": _WORDS, "use_cache": False,
}  # fmt: skip


def _unet() -> _Built:
    model, inputs = zoo_module("nets").build("unet")
    return model, inputs


TIMED: Mapping[str, Callable[[], _Built]] = MappingProxyType(
    {
        "BERT of MiniLM's size": _Transformers("BertModel", _text, _BERT),
        "GPT-2": _Transformers(
            "GPT2LMHeadModel",
            _text,
            {"n_embd": 256, "n_layer": 6, "n_head": 4, "vocab_size": _WORDS, "use_cache": False},
        ),
        "Llama": _Transformers("LlamaForCausalLM", _text, _LLAMA),
        "Mixtral": _Transformers(
            "MixtralForCausalLM", _text, {**_LLAMA, "num_hidden_layers": 4, "num_local_experts": 4}
        ),
        "T5": _Transformers(
            "T5Model",
            _pair,
            {
                "d_model": 256,
                "d_kv": 32,
                "d_ff": 512,
                "num_layers": 4,
                "num_heads": 8,
                "vocab_size": _WORDS,
                "use_cache": False,
            },
        ),
        "BART": _Transformers("BartModel", _pair, _BART),
        "ViT": _Transformers("ViTModel", _pixels(64), _VIT),
        "Swin": _Transformers(
            "SwinModel",
            _pixels(64),
            {
                "image_size": 64,
                "patch_size": 4,
                "embed_dim": 48,
                "depths": [2, 2],
                "num_heads": [3, 6],
                "window_size": 4,
            },
        ),
        "ConvNeXt": _Transformers(
            "ConvNextModel", _pixels(64), {"depths": [3, 3, 9, 3], "hidden_sizes": [48, 96, 192, 384]}
        ),
        "ResNet-50": _Transformers("ResNetModel", _pixels(64), {}),
        "EfficientNet-B0": _Transformers(
            "EfficientNetModel",
            _pixels(64),
            {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
        ),
        "Mamba": _Transformers(
            "MambaModel",
            lambda: {"input_ids": _ids()},
            {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": _WORDS, "use_cache": False},
        ),
        "U-Net": _unet,
    }
)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.after, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(nn.functional.gelu(self.up(self.after(x))))
        return out


class _Stack(nn.Module):
    """Plain pre-norm transformer of so many layers, of a small width; all layers read one mask."""

    def __init__(self, layers: int, width: int = 16) -> None:
        super().__init__()
        self.embed, self.norm, self.head = (
            nn.Embedding(_WORDS, width),
            nn.LayerNorm(width),
            nn.Linear(width, 5),
        )
        self.layers = nn.ModuleList(_Layer(width, 4) for _ in range(layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, mask = self.embed(input_ids), attention_mask[:, None, None, :] > 0
        for layer in self.layers:
            x = layer(x, mask)
        out: Tensor = self.head(self.norm(x))
        return out


def layer_stack(layers: int) -> _Built:
    """A stack of layers with its example inputs."""
    return _Stack(layers).eval(), _text()
