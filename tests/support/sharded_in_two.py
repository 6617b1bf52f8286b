"""Worker of two processes under torchrun: recovers and fine-tunes with whole parameters, and with such as FSDP2 shards."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from fxprune.errors import UsageError
from fxprune.passes import Grain
from fxprune.training import Examples, Recipe
from fxprune.training.fine_tune import fine_tune
from fxprune.training.loop import Checkpoints
from fxprune.training.recovery import Lessons, Material, recover
from fxprune.training.train import train
from support.gated import family
from support.recovering import cut, data, trained
from support.sharding import shard_by

RECIPE = Recipe(2, 1e-3, 4, clip=1.0)


def rows() -> Examples:
    ids = torch.randint(1, 99, (24, 9), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Examples(inputs, ids[:, 0] % 3, torch.full((24,), 9))


def recovered(kept: Checkpoints | None = None) -> dict[str, Any]:
    """Recover a cut net; return its losses and weights."""
    options = Lessons(steps=30, rate=3e-3, precision="no")
    done = recover(trained("unet"), cut("unet"), Material(data("unet")), options, checkpoints=kept)
    weights = [value.double().sum().item() for value in done.program.tensors().values()]
    return {"before": done.details["before"], "after": done.details["after"], "weights": weights}


def tuned() -> dict[str, Any]:
    """Fine-tune a small BERT; return its weights."""
    module = fine_tune(family("bert"), rows(), RECIPE, "pooler_output")
    module(**rows().batch([0, 1])[0])
    return {"weights": [parameter.double().sum().item() for parameter in module.parameters()]}


def refusal(run: Callable[[], Any]) -> str:
    """Return what a run is refused with."""
    try:
        run()
    except UsageError as error:
        return str(error)
    return "none"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    told: dict[str, Any] = {"whole": {"recover": recovered(), "fine_tune": tuned()}}
    with pytest.MonkeyPatch.context() as patch:
        shard_by(patch)
        told["sharded"] = {"recover": recovered(), "fine_tune": tuned()}
        told["kept"] = refusal(lambda: recovered(Checkpoints(folder / "kept", 0)))
        told["gates"] = refusal(
            lambda: train(family("bert"), Grain(density=0.4), rows(), RECIPE, outputs=("pooler_output",))
        )
        patch.setattr("accelerate.Accelerator.is_fsdp2", False)
        told["first"] = refusal(recovered)
    (folder / f"{state.process_index}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
