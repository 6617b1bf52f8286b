"""transformers.Trainer with the callback: densities are met, and a run that is killed and resumed ends like one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import capture
from fxprune.gates import Gated
from fxprune.gates.lower import lower
from fxprune.training import Cubic, Pruner, Share
from support.gated import within_heads
from support.models import distance

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS = 6


def classifier() -> Gated:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    auto = torch.export.Dim.AUTO
    ids = torch.randint(0, 99, (4, 13))
    return within_heads(
        capture(model, kwargs={"input_ids": ids}, dynamic_shapes={"input_ids": {0: auto, 1: auto}})
    )


def rows() -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 99, (48, 13), generator=random)
    return [{"input_ids": row, "labels": int(row[0] > 49)} for row in ids]


def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(outputs["logits"], labels)


def trained(
    on: Gated, folder: Path, resume: str | None = None, steps: int = STEPS
) -> tuple[Pruner, list[dict[str, float]]]:
    from fxprune.integrations.huggingface.trainer import PruneCallback

    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=8, logging_steps=1, save_steps=3, report_to=[],
        use_cpu=True, disable_tqdm=True, learning_rate=1e-3, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    module = on.module()
    pruner = Pruner(on, module, Share(Cubic(0.3, 0.0, 0.8)))
    callbacks: list[Any] = [PruneCallback(pruner)] + ([stop(steps)] if steps < STEPS else [])
    trainer = transformers.Trainer(
        model=module, args=arguments, train_dataset=rows(), compute_loss_func=loss, callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=resume)
    return pruner, [entry for entry in trainer.state.log_history if "loss" in entry]


def stop(after: int) -> Any:
    """A callback that ends a run early, as a kill would."""

    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= after

    return Stop()


def test_a_trainer_prunes_and_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    on = classifier()
    whole, logs = trained(on, tmp_path / "whole")
    assert whole.density <= 0.3
    densities = [entry["density"] for entry in logs]
    assert len(densities) == STEPS
    assert densities == sorted(densities, reverse=True)
    trained(on, tmp_path / "killed", steps=3)
    resumed, _ = trained(on, tmp_path / "killed", str(tmp_path / "killed" / "checkpoint-3"))
    assert resumed.density == whole.density
    assert all(torch.equal(resumed.open[gate], table) for gate, table in whole.open.items())
    assert all(torch.equal(resumed.scores[gate], score) for gate, score in whole.scores.items())
    small = lower(on, resumed.module).program
    ids = torch.stack([row["input_ids"] for row in rows()[:3]])
    assert distance(small(input_ids=ids), resumed.module.eval()(input_ids=ids)) < 1e-5
