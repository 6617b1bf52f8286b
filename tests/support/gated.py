"""Helpers for the tests of gates: six tiny families, gates on all axes and regions that can have them, random masks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fxprune import Program, analyze, capture
from fxprune.gates import Gate, Gated
from fxprune.gates.gate import GateTarget
from fxprune.gates.insert import gate
from fxprune.ir import copy_graph, rebuild
from support.models import captured, dynamic_shapes
from zoo.check import randomise

FAMILIES = ("bert", "roberta", "gpt2", "llama", "vit", "t5")


@cache
def family(name: str) -> Program:
    """A tiny model of a family, with random weights and dynamic sizes."""
    if name in ("bert", "gpt2", "llama"):
        return captured(name, dynamic=True)
    model, inputs = _made(name)
    randomise(model)
    return capture(model.eval(), kwargs=inputs, dynamic_shapes=dynamic_shapes(inputs))


def _made(name: str) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    ids = torch.randint(2, 99, (3, 13))
    if name == "roberta":
        config = transformers.RobertaConfig(vocab_size=99, max_position_embeddings=64, **sizes)
        return transformers.RobertaModel(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "vit":
        seen = transformers.ViTConfig(image_size=16, patch_size=4, num_channels=2, **sizes)
        return transformers.ViTForImageClassification(seen), {"pixel_values": torch.randn(3, 2, 16, 16)}
    small = transformers.T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, use_cache=False
    )
    return transformers.T5ForConditionalGeneration(small), {"input_ids": ids, "decoder_input_ids": ids[:, :7]}


def everything(program: Program) -> list[GateTarget]:
    """The targets for gates: each exact axis without choices, q/k and v dims within each head where that is possible."""
    analysis = analyze(program)
    asked: list[GateTarget] = []
    for axis in analysis.axes:
        if axis.exact and not axis.choices:
            outer = analysis.within(axis.name) if axis.role in ("qk", "v") else ()
            asked.append((axis.name, outer[0]) if outer else axis.name)
    return asked


def within_heads(program: Program) -> Gated:
    """GRAIN's units: neurons, and q/k and v dims of each head."""
    analysis = analyze(program)
    units = [(axis.name, analysis.within(axis.name)[0]) for axis in analysis.axes if axis.role in ("qk", "v")]
    return gate(program, [*units, *(axis.name for axis in analysis.axes if axis.role == "ffn")])


@cache
def gated(name: str) -> Gated:
    """A family with gates on all axes and regions."""
    program = family(name)
    regions = [region.name for region in analyze(program).regions if not region.why]
    return gate(program, everything(program), regions)


def masked(on: Gated, masks: Mapping[Gate, Tensor]) -> dict[str, Tensor]:
    """The tensors of a gated program, with these gates."""
    dtype = next(iter(on.program.parameters().values())).dtype
    return {**on.program.tensors(), **{g.name: nn.Parameter(mask.to(dtype)) for g, mask in masks.items()}}


def with_masks(on: Gated, masks: Mapping[Gate, Tensor]) -> Program:
    """The gated program itself, with these gates."""
    return rebuild(on.program, copy_graph(on.program), masked(on, masks))


def drawn(on: Gated, seed: int) -> dict[Gate, Tensor]:
    """Random masks at a random density; regions mostly stay, and some seeds empty whole axes or whole rows."""
    random = torch.Generator().manual_seed(seed)
    density = float(torch.rand((), generator=random))
    found = {}
    for g in on.gates:
        shape = on.program.tensors()[g.name].shape
        share = density if g.kind == "units" else 0.9
        mask = torch.rand(shape, generator=random) < share
        if g.within and bool(torch.rand((), generator=random) < 0.5):
            mask &= torch.rand(shape[0], 1, generator=random) < 0.7
        if g.kind == "units" and bool(torch.rand((), generator=random) < 0.1):
            mask = torch.zeros_like(mask)
        found[g] = mask
    return found


def named(on: Gated, ending: str) -> Gate:
    """The first gate whose axis or region ends so."""
    return next(g for g in on.gates if g.of.endswith(ending))
