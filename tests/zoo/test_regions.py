"""Fixed and dynamic sizes have the same regions: over the hand-written set, and a dozen architectures of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fxprune import analyze, capture
from fxprune.errors import CaptureError
from support.models import dynamic_shapes
from zoo import hf, nets

ARCHITECTURES = (
    "BertForMaskedLM",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "T5ForConditionalGeneration",
    "CohereForCausalLM",
    "StableLmForCausalLM",
    "GPTNeoXForCausalLM",
    "ReformerModelWithLMHead",
    "SwinForImageClassification",
    "ConvNextForImageClassification",
    "WhisperForConditionalGeneration",
    "BlipForConditionalGeneration",
)


def regions(build: Callable[[], tuple[Any, Any]], dynamic: bool) -> list[tuple[str, str, bool]]:
    """Kinds and names of the regions, and which can go."""
    module, inputs = build()
    module.eval()
    program = capture(module, kwargs=inputs, dynamic_shapes=dynamic_shapes(inputs) if dynamic else None)
    return [(r.unit, r.name, not r.why) for r in analyze(program).regions]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str) -> None:
    build = hf.ROWS[name].build
    found = regions(build, dynamic=False)
    assert found == regions(build, dynamic=True)
    assert sum(unit == "layer" and can_go for unit, _, can_go in found) >= 2


@pytest.mark.parametrize("name", sorted(nets.NETS))
def test_hand_written_nets(name: str) -> None:
    try:
        dynamic = regions(lambda: nets.build(name), dynamic=True)
    except CaptureError as error:
        pytest.skip(f"torch.export can't capture {name} at dynamic sizes: {error}")
    assert regions(lambda: nets.build(name), dynamic=False) == dynamic
