"""Training loop: a killed and resumed run ends bit-equal, mixed precision trains the module that is evaluated, hooks run at every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture
from fxprune.errors import UsageError
from fxprune.ir import Program
from fxprune.training import Examples, Recipe
from fxprune.training.fine_tune import fine_tune, predicted
from fxprune.training.loop import Checkpoints, Hooks, Loop, RunState

pytest.importorskip("accelerate")

RECIPE = Recipe(epochs=3, learning_rate=1e-2, batch_size=8, seed=5, clip=1.0, warmup=0.1, weight_decay=0.01)


class Net(nn.Module):
    """Two layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(20, 16), nn.Linear(16, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.linear(self.dropout(self.table(ids)).mean(1))}


def program() -> Program:
    torch.manual_seed(0)
    auto = torch.export.Dim.AUTO
    return capture(
        Net().eval(),
        kwargs={"ids": torch.ones(2, 5, dtype=torch.long)},
        dynamic_shapes={"ids": {0: auto, 1: auto}},
    )


def rows(count: int = 44) -> Examples:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 20, (count, 7), generator=random)
    return Examples({"ids": ids}, ids[:, 0] % 3, torch.randint(2, 8, (count,), generator=random))


class KilledError(Exception):
    """Stands for a signal."""


def kill(after: int) -> Hooks:
    def look(moment: RunState) -> None:
        if moment.step == after:
            raise KilledError

    return Hooks(before=look)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("after", [3, 9])
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_weights(tmp_path: Path, after: int) -> None:
    """In the middle of the first epoch, and of the second: rows, dropout, moments and learning rate are where they were."""
    whole = fine_tune(program(), rows(), RECIPE)
    kept = Checkpoints(tmp_path, seconds=0)
    with pytest.raises(KilledError):
        fine_tune(program(), rows(), RECIPE, hooks=kill(after), checkpoints=kept)
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{after}"]
    seen: list[int] = []
    hooks = Hooks(after=lambda moment: seen.append(moment.step))
    resumed = fine_tune(program(), rows(), RECIPE, hooks=hooks, checkpoints=kept)
    assert seen == list(range(after + 1, 19))
    assert torch.equal(weights(whole), weights(resumed))
    assert [path.name for path in tmp_path.iterdir()] == ["step-18"]


def test_a_run_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    one = fine_tune(program(), rows(), RECIPE, checkpoints=kept)
    other = fine_tune(program(), rows(), RECIPE, hooks=kill(0), checkpoints=kept)
    assert torch.equal(weights(one), weights(other))


def test_a_draft_that_was_not_finished_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "model.safetensors").write_text("half")
    fine_tune(program(), rows(), replace(RECIPE, epochs=1), checkpoints=Checkpoints(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-6"]


def test_what_was_trained_in_bfloat16_is_evaluated_without_dropout() -> None:
    """Accelerate's own mixed precision kept the graph of training: answers were drawn."""
    net = program()
    trained = fine_tune(net, rows(), replace(RECIPE, precision="bf16"))
    answers = [trained(ids=rows().inputs["ids"])["logits"] for _ in range(2)]
    assert torch.equal(*answers)
    assert answers[0].dtype == torch.float32
    plain = fine_tune(net, rows(), RECIPE)
    difference = (weights(trained) - weights(plain)).abs().max()
    assert 0 < float(difference) < 0.1


def test_hooks_and_history() -> None:
    told: list[Any] = []
    module = program().module()
    hooks = Hooks(
        before=lambda moment: told.append(moment.progress),
        epoch=lambda moment: moment.history.append({"step": moment.step, "training": module.training}),
    )
    loop = Loop(module, rows(), replace(RECIPE, epochs=2), hooks)
    state = torch.get_rng_state()
    moment = loop.run(lambda ready, batch: ready(**batch[0])["logits"].square().mean())
    assert told == [i / 11 for i in range(12)]
    assert moment.history == [{"step": 6, "training": True}, {"step": 12, "training": True}]
    assert moment.loss < 0.2
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_that_count_for_nothing_teach_nothing() -> None:
    some = rows()
    labels = some.labels.clone()
    labels[10:] = -100
    blank = Examples(some.inputs, labels, some.lengths)
    net = program()
    trained = fine_tune(net, blank.rows(range(10, 44)), replace(RECIPE, weight_decay=0.0, epochs=1))
    assert torch.equal(weights(trained), weights(net.graph_module))


def test_a_precision_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="precision must be no or bf16, got 'fp16'"):
        Recipe(precision="fp16")


def test_a_batch_is_cut_to_its_longest_row() -> None:
    some = rows()
    inputs, labels, index = some.batch([0, 1, 2])
    assert some.lengths is not None
    assert inputs["ids"].shape == (3, int(some.lengths[:3].max()))
    assert (labels.shape, index.tolist()) == ((3,), [0, 1, 2])
    tokens = Examples(some.inputs, some.inputs["ids"], some.lengths, by_token=True)
    assert tokens.batch([0, 1])[1].shape == tokens.batch([0, 1])[0]["ids"].shape
    assert predicted(program(), program().module().eval(), some).shape == (44,)


@pytest.mark.parametrize("damage", ["truncated", "removed", "garbage"])
def test_a_damaged_checkpoint_is_a_sentence(damage: str, tmp_path: Path) -> None:
    kept, recipe = Checkpoints(tmp_path), replace(RECIPE, epochs=1)
    fine_tune(program(), rows(), recipe, checkpoints=kept)
    (tmp_path / "step-old").mkdir()  # renamed by somebody: not a checkpoint
    (place,) = tmp_path.glob("step-[0-9]*")
    for file in (path for path in place.rglob("*") if path.is_file()):
        if damage == "removed":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:20] if damage == "truncated" else b"garbage" * 9)
    with pytest.raises(UsageError, match=r"is of another run, or of another version .* begin anew"):
        fine_tune(program(), rows(), recipe, checkpoints=kept)
