"""Worker of two processes under torchrun: trains a gated model under Accelerate on data of its own, and writes the state of its gates."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from fxprune.training import Cubic, Pruner, Share
from support.gated import family, within_heads

STEPS = 6


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    on = within_heads(family("bert"))
    model = on.module().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    pruner = Pruner(on, model, Share(Cubic(0.3, 0.0, 0.8)))
    random = torch.Generator().manual_seed(accelerator.process_index)
    for step in range(STEPS):
        ids = torch.randint(0, 99, (4, 13), generator=random)
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).values()
        accelerator.backward(sum((out * torch.randn(out.shape, generator=random)).sum() for out in outputs))
        pruner.step(step / (STEPS - 1))
        optimizer.step()
        optimizer.zero_grad()
    told = {
        "processes": accelerator.num_processes,
        "density": pruner.density,
        "open": {gate.name: table.tolist() for gate, table in pruner.open.items()},
        "scores": {gate.name: score.tolist() for gate, score in pruner.scores.items()},
        "weight": model.module.get_parameter("encoder.layer.0.output.dense.weight").sum().item(),
        "ids": ids.sum().item(),
    }
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
