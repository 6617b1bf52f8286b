"""Worker of two processes under torchrun: recovers a cut net on its share of the rows, and writes what became of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from fxprune.training.loop import Checkpoints
from fxprune.training.recovery import Lessons, Material, recover
from support.recovering import cut, data, trained


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    options = Lessons(steps=30, rate=3e-3, precision="no")
    kept = Checkpoints(folder / "kept", 0)
    done = recover(trained("unet"), cut("unet"), Material(data("unet")), options, checkpoints=kept)
    again = recover(trained("unet"), cut("unet"), Material(data("unet")), options, checkpoints=kept)
    told = {
        "processes": state.num_processes,
        "before": done.details["before"],
        "after": done.details["after"],
        "again": again.details["after"],
        "weights": [value.double().sum().item() for value in done.program.tensors().values()],
    }
    (folder / f"{state.process_index}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
