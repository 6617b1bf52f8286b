"""Training with a method: units go while labels or a teacher train, teacher outputs are cached, a killed run closes the same gates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import UsageError
from fxprune.gates.lower import lower
from fxprune.passes import Grain
from fxprune.training import Examples, Recipe, Trained
from fxprune.training.distillation import matched
from fxprune.training.fine_tune import fine_tune
from fxprune.training.loop import Checkpoints, Hooks, RunState
from fxprune.training.teacher_cache import TeacherCache
from fxprune.training.train import train
from support.gated import family
from support.models import distance, hugging_face
from support.two_processes import run_in_two

pytest.importorskip("accelerate")

RECIPE = Recipe(epochs=2, learning_rate=1e-3, batch_size=8, seed=1, clip=1.0)
GRAIN = Grain(density=0.4, beta=0.5)
OUT = ("pooler_output",)


def rows(count: int = 30) -> Examples:
    """Sentences of unequal lengths; class numbers are places of the pooler's output."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 99, (count, 11), generator=random)
    lengths = torch.randint(3, 12, (count,), generator=random)
    mask = (torch.arange(11) < lengths[:, None]).long()
    return Examples({"input_ids": ids, "attention_mask": mask}, ids[:, 0] % 3, lengths)


def taught(**more: Any) -> Trained:
    return train(
        family("bert"),
        GRAIN,
        rows(),
        RECIPE,
        more.pop("teacher", hugging_face("bert")[0]),
        outputs=OUT,
        **more,
    )


def values(one: Trained) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in one.module.parameters()])


def test_a_teacher_trains_a_student_that_shrinks() -> None:
    one = taught()
    assert 0.3 < one.pruner.density <= 0.4
    assert one.moment.step == one.moment.steps == 8
    small = lower(one.gated, one.module).program
    inputs = dict(rows().inputs)
    assert distance(small(**inputs), one.module(**inputs)) < 1e-5
    assert small.parameter_count() < one.gated.base.parameter_count()


def test_without_a_teacher_labels_teach() -> None:
    one, other = (
        train(family("bert"), GRAIN, replace(rows(), labels=labels), RECIPE, outputs=OUT)
        for labels in (rows().labels, rows().labels * 0)
    )
    assert one.pruner.density <= 0.4
    assert not torch.equal(values(one), values(other))


def test_a_teacher_may_be_a_programs_module() -> None:
    """It has the same hidden states as the model that it was captured from."""
    teacher = fine_tune(family("bert"), rows(), replace(RECIPE, epochs=1), "pooler_output")
    assert matched(family("bert"), teacher) == {
        path: path for path in ("embeddings", "encoder.layer.0", "encoder.layer.1")
    }
    one = taught(teacher=family("bert").module().eval())
    assert torch.allclose(values(one), values(taught()), atol=1e-4)


def test_a_teacher_stays_as_it_was() -> None:
    """No hooks and no taps are left in it, however often it teaches."""
    model, module = hugging_face("bert")[0], family("bert").module().eval()
    nodes = len(module.graph.nodes)  # type: ignore[union-attr, arg-type]
    for teacher in (model, module):
        taught(teacher=teacher)
    assert [len(each._forward_hooks) for each in model.modules()] == [0] * len(list(model.modules()))
    assert len(module.graph.nodes) == nodes  # type: ignore[union-attr, arg-type]
    assert not any(name.startswith("_tap") for name, _ in module.named_modules())


def test_of_many_layers_every_second_is_matched() -> None:
    teacher, _ = hugging_face("bert")
    assert list(matched(family("bert"), teacher, most=1)) == ["embeddings", "encoder.layer.1"]
    assert matched(family("bert"), nn.Linear(2, 2)) == {}


def test_what_the_teacher_said_is_remembered() -> None:
    """Rows come in other batches in every epoch, and padding never matters."""
    calls: list[int] = []
    teacher, _ = hugging_face("bert")
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    recall = TeacherCache()
    one = taught(teacher=teacher, recall=recall)
    assert (len(calls), len(recall)) == (1 + 4, 30)
    lengths = int(rows().lengths.sum())  # type: ignore[union-attr]
    assert recall.bytes == 4 * 32 * (30 + 3 * lengths)
    assert torch.allclose(values(one), values(taught()), atol=1e-4)
    again = taught(teacher=teacher, recall=recall)
    assert len(calls) == 6
    assert torch.allclose(values(one), values(again), atol=1e-4)


def test_a_memory_that_is_full_asks_again() -> None:
    recall = TeacherCache(limit=10_000)
    assert taught(recall=recall).pruner.density <= 0.4
    assert 0 < len(recall) < 30
    assert recall.bytes <= 10_000


def test_a_run_that_was_killed_ends_with_the_same_gates(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def look(moment: RunState) -> None:
        if moment.step == 3:
            raise KilledError

    whole = taught()
    with pytest.raises(KilledError):
        taught(hooks=Hooks(before=look), checkpoints=Checkpoints(tmp_path, seconds=0))
    resumed = taught(checkpoints=Checkpoints(tmp_path, seconds=0))
    assert all(torch.equal(resumed.pruner.open[gate], table) for gate, table in whole.pruner.open.items())
    assert all(torch.equal(resumed.pruner.scores[g], score) for g, score in whole.pruner.scores.items())
    assert torch.equal(values(whole), values(resumed))


def test_a_teacher_that_says_something_else() -> None:
    with pytest.raises(UsageError, match="no output 'logits'; outputs: last_hidden_state, pooler_output"):
        train(family("bert"), GRAIN, rows(), RECIPE)


def test_two_processes_close_the_same_gates(tmp_path: Path) -> None:
    """Each has its share of the rows; scores, gates, weights and checkpoints are common."""
    (tmp_path / "kept").mkdir()
    one, other = run_in_two("taught_in_two", tmp_path)
    assert (one["processes"], one["steps"]) == (2, 6)
    assert one["density"] <= 0.4
    assert one["resumed"]  # what was killed ended with the same weights, bit for bit
    assert other["resumed"]
    assert one["rows"] != other["rows"]
    for key in ("density", "open", "scores", "weights"):
        assert one[key] == other[key]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step-6"]
