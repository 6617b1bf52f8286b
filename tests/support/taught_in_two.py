"""Worker of two processes under torchrun: trains a student on its share of the rows, and writes the state of its gates."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from fxprune.passes import Grain
from fxprune.training import Examples, Recipe, Trained
from fxprune.training.loop import Checkpoints, Hooks, RunState
from fxprune.training.teacher_cache import TeacherCache
from fxprune.training.train import train
from support.gated import family
from support.models import hugging_face


class KilledError(Exception):
    """Stands for a signal."""


def kill(moment: RunState) -> None:
    if moment.step == 3:
        raise KilledError


def learn(rows: Examples, **more: Any) -> Trained:
    return train(
        family("bert"), Grain(density=0.4, beta=0.5), rows, Recipe(2, 1e-3, 4, clip=1.0), hugging_face("bert")[0],
        outputs=("pooler_output",), **more,
    )  # fmt: skip


def weights(taught: Trained) -> list[Any]:
    return [parameter.tolist() for parameter in taught.module.parameters()]


def resumed(rows: Examples, kept: Checkpoints) -> Trained:
    """Train up to step 3, and then from its checkpoint on."""
    with suppress(KilledError):
        learn(rows, checkpoints=kept, hooks=Hooks(before=kill))
    torch.manual_seed(77)
    return learn(rows, checkpoints=kept)


def main(folder: Path) -> None:
    ids = torch.randint(1, 99, (24, 9), generator=torch.Generator().manual_seed(1))
    rows = Examples(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids[:, 0] % 3, torch.full((24,), 9)
    )
    state = PartialState(cpu=True)
    seen: list[int] = []
    recall = TeacherCache()
    taught = learn(rows, checkpoints=Checkpoints(folder / "kept", 0), recall=recall)
    seen = sorted(recall._rows)
    told: dict[str, Any] = {
        "processes": state.num_processes,
        "steps": taught.moment.steps,
        "density": taught.pruner.density,
        "rows": seen,
        "open": {gate.name: table.tolist() for gate, table in taught.pruner.open.items()},
        "scores": {gate.name: score.tolist() for gate, score in taught.pruner.scores.items()},
        "resumed": weights(resumed(rows, Checkpoints(folder / "killed", 0))) == weights(learn(rows)),
        "weights": [parameter.sum().item() for parameter in taught.module.parameters()],
    }
    (folder / f"{state.process_index}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
