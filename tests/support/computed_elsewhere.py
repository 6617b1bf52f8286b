"""Worker in a process of its own: runs pipelines on the CPU and on a second device, and writes what became of the programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from fxprune.passes import parse_pipeline
from fxprune.pipeline import Context
from fxprune.storage import devices
from support import fake_device
from support.slimmable import BATCH, LENGTH, subject

PIPELINES = {
    "re-fits": ("bert", "slim(flops=0.7, repair='all+logits')"),
    "convolutions": ("convs", "slim(flops=0.7, repair='all+kernels+norms')"),
    "factors": ("gpt2", "lowrank(rank=4), ffn(ratio=0.5, score='obs')"),
    "gradients": ("llama", "heads(ratio=0.5, score='taylor'), ffn(ratio=0.5, score='fisher')"),
    "a loss": ("llama", "slim(flops=0.8) by loss"),
    "norms": ("llama", "ffn(ratio=0.5, score='activation'), layers(count=1)"),
}


def token_loss(outputs: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of the user's own that reads the batch."""
    return torch.nn.functional.cross_entropy(outputs[0].flatten(0, 1), batch["input_ids"].flatten())


def pruned(name: str, text: str, device: str) -> dict[str, object]:
    """The result of a pipeline, as plain data."""
    program, data = subject(name)
    loss = token_loss if "loss" in text else None
    text = text.removesuffix(" by loss")
    point = {"batch": BATCH, "length": LENGTH} if name != "convs" else {}
    result = parse_pipeline(text).run(
        program, Context(data=data, point=point, cache=False, device=device, loss=loss)
    )
    tensors = result.program.tensors().values()
    return {
        "selection": result.selection.to_json(),
        "refitted": list(result.refitted),
        "weights": [value.double().abs().sum().item() for value in tensors],
        "devices": sorted({value.device.type for value in tensors}),
        "proven": result.proof.relative <= result.proof.bar,
    }


def main(folder: Path) -> None:
    """Write, for each pipeline, both results and the number of operators that ran on the second device."""
    torch.set_num_threads(1)
    told = {}
    for key, (name, text) in PIPELINES.items():
        here = pruned(name, text, "")
        before = fake_device.operators()
        there = pruned(name, text, fake_device.NAME)
        ran = fake_device.operators() - before
        devices.WITHOUT_FLOAT64 = frozenset({fake_device.NAME})
        wide = fake_device.wide_operators()
        narrow = pruned(name, text, fake_device.NAME)
        devices.WITHOUT_FLOAT64 = frozenset()
        wide = fake_device.wide_operators() - wide
        told[key] = {"here": here, "there": there, "narrow": narrow, "operators": ran, "wide": wide}
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
