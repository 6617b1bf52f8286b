"""Processes of one run, as torchrun and `accelerate launch` start them: how many, the first, what it hands to the others, sums."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from fxprune.training.loop import accelerator_for


def process_count() -> int:
    """Return how many processes run this program together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Return whether this process is the one that writes files and speaks to the user."""
    return int(os.environ.get("RANK", "0")) == 0


def from_first(content: bytes | None, device: torch.device) -> bytes | None:
    """Return the first process's bytes in all processes, None where it has none; `device` is that of the weights.

    All processes must call it; what others than the first give is not looked at.
    """
    if process_count() == 1:
        return content
    place = accelerator_for(device).device
    own = content if is_first_process() else None
    size = torch.tensor([-1 if own is None else len(own)], device=place)
    torch.distributed.broadcast(size, 0)
    if int(size) < 0:
        return None
    data = (
        torch.empty(int(size), dtype=torch.uint8)
        if own is None
        else torch.frombuffer(bytearray(own), dtype=torch.uint8)
    )
    data = data.to(place)
    torch.distributed.broadcast(data, 0)
    return bytes(data.cpu().numpy())


def summed(value: Tensor, device: torch.device) -> Tensor:
    """Return the sum of a tensor over all processes, on the CPU; `device` is that of the weights."""
    if process_count() == 1:
        return value
    found = value.to(accelerator_for(device).device)
    torch.distributed.all_reduce(found)
    return found.cpu()
