"""Distillation: losses as in the paper, hidden states from the right modules, any teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from fxprune.errors import UsageError
from fxprune.training import Distillation
from support.gated import family, within_heads
from support.models import hugging_face

IDS = torch.arange(26).reshape(2, 13)
MASK = torch.ones_like(IDS)
LAYERS = {f"encoder.layer.{i}": f"encoder.layer.{i}" for i in range(2)}


def batch() -> dict[str, Tensor]:
    return {"input_ids": IDS, "attention_mask": MASK}


def taught(pairs: dict[str, str] | None = None) -> tuple[Distillation, Any, nn.Module]:
    """A tiny BERT that teaches its own gated program."""
    teacher, _ = hugging_face("bert")
    student = within_heads(family("bert")).module()
    return Distillation(teacher, student, batch(), pairs), student, teacher


def test_who_is_like_the_teacher_has_no_hidden_loss() -> None:
    distillation, student, _ = taught({**LAYERS, "embeddings": "embeddings"})
    shown = distillation.show(**batch()).last_hidden_state
    ours = student(**batch())["last_hidden_state"]
    losses = distillation.losses(ours, shown)
    assert float(losses.hidden.detach()) < 1e-10
    soft = F.softmax(shown / 8, dim=-1)
    assert float(losses.logits.detach()) == pytest.approx(
        float(-(soft * soft.log()).sum(-1).mean()), rel=1e-5
    )


def test_hidden_states_are_those_of_the_modules() -> None:
    distillation, student, teacher = taught(LAYERS)
    distillation.show(**batch())
    student(**batch())
    expected = teacher(**batch(), output_hidden_states=True).hidden_states[1:]
    for seen, wanted in zip(distillation._taught.values(), expected, strict=True):
        assert torch.allclose(seen, wanted, atol=1e-5)


def test_the_hidden_loss_counts_tokens_that_are_there() -> None:
    distillation, student, _ = taught({"encoder.layer.1": "encoder.layer.0"})
    distillation.show(**batch())
    student(**batch())
    mask = MASK.clone()
    mask[1, 4:] = 0
    apart = (
        (distillation._taught["encoder.layer.1"] - distillation.shown["encoder.layer.0"]).square().mean(-1)
    )
    logits = torch.zeros(2, 3)
    found = distillation.losses(logits, logits, mask).hidden
    assert float(found.detach()) == pytest.approx(float(apart[mask == 1].mean().detach()), rel=1e-5)


def test_only_the_maps_are_trained() -> None:
    distillation, student, _ = taught(LAYERS)
    assert [name for name, _ in distillation.named_parameters()] == [
        f"maps.encoder_layer_{i}.{kind}" for i in range(2) for kind in ("weight", "bias")
    ]
    distillation.show(**batch())
    ours = student(**batch())["last_hidden_state"]
    losses = distillation.losses(ours, torch.zeros_like(ours))
    (losses.logits + losses.hidden).backward()
    assert dict(student.named_parameters())["encoder.layer.0.output.dense.weight"].grad is not None


def test_a_smaller_teacher_gets_a_map_between_the_sizes() -> None:
    teacher = nn.Sequential(nn.Embedding(99, 6), nn.Linear(6, 5))
    student = within_heads(family("bert")).module()
    wrapped = Wrapped(teacher)
    distillation = Distillation(wrapped, student, batch(), {"encoder.layer.1": "inner.0"})
    assert distillation.maps["encoder_layer_1"].weight.shape == (6, 32)


class Wrapped(nn.Module):
    """Takes what the student takes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.inner(input_ids) * attention_mask[..., None]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            {"encoder.layer.7": "encoder.layer.0"},
            r"the student has no module 'encoder\.layer\.7' whose output is read",
        ),
        ({"encoder.layer.0": "encoder.layer.7"}, r"the teacher has no module 'encoder\.layer\.7'"),
    ],
)
def test_a_path_that_is_not_there(pairs: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        taught(pairs)
