"""GRAIN as a configuration: its units, its losses, its densities; its effect on a task is measured elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune import analyze, capture
from fxprune.errors import FxpruneError, RefusedError
from fxprune.gates.lower import lower
from fxprune.passes import Grain
from fxprune.training import Distillation, Losses
from fxprune.training.gate_scores import Random, StepInputs, Taylor
from support.gated import family
from support.models import distance, hugging_face

IDS = torch.arange(39).reshape(3, 13)
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
LAYERS = {f"encoder.layer.{i}": f"encoder.layer.{i}" for i in range(2)}


def taught(grain: Grain, steps: int = 8) -> tuple[Any, Any, Any]:
    """A tiny BERT that is pruned while its unpruned self teaches it."""
    on = grain.gated(family("bert"))
    student: Any = on.module()
    teacher, _ = hugging_face("bert")
    distillation = Distillation(teacher, student, BATCH, LAYERS, grain.temperature)
    pruner = grain.pruner(on, student)
    optimizer = torch.optim.AdamW([*student.parameters(), *distillation.parameters()], lr=1e-3)
    densities = []
    for step in range(steps):
        shown = distillation.show(**BATCH).pooler_output
        losses = distillation.losses(student(**BATCH)["pooler_output"], shown, BATCH["attention_mask"])
        grain.loss(pruner, losses).backward()
        pruner.step(step / (steps - 1))
        optimizer.step()
        optimizer.zero_grad()
        densities.append(pruner.density)
    return on, student, densities


def test_the_defaults_are_the_papers() -> None:
    assert Grain() == Grain(0.05, 0.3, 0.998, 0.2, 0.4, 8.0, 1.0, True)


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("bert", [("qk", True), ("v", True), ("ffn", False)]),
        ("llama", [("qk", False), ("v", True), ("ffn", False)]),
    ],
)
def test_its_units_are_dims_of_each_head_and_neurons(name: str, apart: list[tuple[str, bool]]) -> None:
    """Llama's q/k dims share rotary tables: the same ones leave in all heads."""
    program = family(name)
    role = {axis.name: axis.role for axis in analyze(program).axes}
    assert [(role[each.of], bool(each.within)) for each in Grain().gated(program).gates] == apart * 2


def test_structure_is_regularised_by_value_dims_alone() -> None:
    on = Grain().gated(family("bert"))
    score, plain = (Grain(alpha=alpha).pruner(on, on.module()).score for alpha in (0.3, 0))
    assert isinstance(score, Taylor)
    assert [(each.of, value) for each, value in score.alpha.items()] == [
        (f"encoder.layer.{i}.attention.v", 0.3) for i in range(2)
    ]
    assert plain == Taylor()


def test_the_table_of_tokens_may_become_two_factors() -> None:
    """99 tokens of 32 numbers; positions with it, while two token types are no table to speak of."""
    on = Grain(density=0.3, rank=8).gated(family("bert"))
    thin = {name: tuple(value.shape) for name, value in on.base.tensors().items() if "embeddings" in name}
    assert thin["embeddings.word_embeddings.weight_rows"] == (99, 8)
    assert thin["embeddings.word_embeddings.weight_columns"] == (8, 32)
    assert [name for name in thin if name.endswith("_rows")] == [
        "embeddings.word_embeddings.weight_rows",
        "embeddings.position_embeddings.weight_rows",
    ]
    assert Grain(rank=40).gated(family("bert")).base.parameter_count() == family("bert").parameter_count()
    assert "rank" in {axis.role for axis in analyze(on.base).axes}


def test_what_it_is_compared_with() -> None:
    """Whole heads, and scores that say nothing: other numbers for other seeds, the same in every step."""
    program = family("bert")
    role = {axis.name: axis.role for axis in analyze(program).axes}
    assert [role[each.of] for each in Grain(units="heads").gated(program).gates] == ["heads", "ffn"] * 2
    on, student, densities = taught(Grain(density=0.5, score="random", units="heads", seed=3))
    assert 0.4 < densities[-1] <= 0.5
    assert lower(on, student).program.parameter_count() < on.base.parameter_count()
    gates = {each: torch.ones(4) for each in on.gates}
    drawn = [dict.fromkeys(gates, torch.zeros(4, dtype=torch.float64)) for _ in range(2)]
    for seed, scores in enumerate(drawn):
        scores.update({gate: torch.zeros(4, dtype=torch.float64) for gate in gates})
        Random(seed).update(StepInputs(scores, gates, gates))
    first, other = (torch.cat(list(scores.values())) for scores in drawn)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 16


@pytest.mark.parametrize("separate", [True, False])
def test_a_student_loses_units_while_it_is_taught(separate: bool) -> None:
    on, student, densities = taught(Grain(density=0.3, beta=0.5, separate=separate))
    assert densities[:2] == [1, 1]
    assert densities[-1] <= 0.3
    assert densities == sorted(densities, reverse=True)
    small = lower(on, student).program
    assert distance(small(**BATCH), student.eval()(**BATCH)) < 1e-5
    assert small.parameter_count() < 0.75 * on.base.parameter_count()


def test_hidden_losses_move_scores_only_where_they_are_not_separate() -> None:
    chosen = []
    for separate in (True, False):
        on, student, _ = taught(Grain(density=0.5, beta=0.0, start=0.0, end=0.1, separate=separate), steps=2)
        named = dict(student.named_parameters())
        chosen.append([named[each.name].tolist() for each in on.gates])
    assert chosen[0] != chosen[1]


def test_scores_rest_once_all_have_left() -> None:
    """The second backward pass of gradient separation is spared from then on; the hidden loss touches no score either."""
    grain = Grain(density=0.5, beta=0.5, start=0.0, end=0.5)
    (_, _, few), (_, student, many) = taught(grain, 2), taught(grain, 3)
    assert [few[-1] <= 0.5, many[-1] == many[-2]] == [True, True]
    scores = [value for name, value in student.named_buffers() if name.startswith("gate_scores")]
    before = [value.clone() for value in scores]
    on = grain.gated(family("bert"))
    pruner = grain.pruner(on, student)
    loss = student(**BATCH)["pooler_output"].sum()
    grain.loss(pruner, Losses(loss, loss.square())).backward()
    pruner.step(1.0)
    assert all(torch.equal(old * 0.5, new) for old, new in zip(before, scores, strict=True))


def test_what_it_refuses() -> None:
    with pytest.raises(RefusedError, match="no neurons and no dims of heads"):
        Grain().gated(
            capture(
                nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)), (torch.randn(1, 2, 9, 9),)
            )
        )
    with pytest.raises(FxpruneError, match=r"density must lie in \(0, 1\], got 0"):
        Grain(density=0)
