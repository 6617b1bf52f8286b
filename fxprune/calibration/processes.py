"""Processes of one run, as torchrun and `accelerate launch` start them: how many, the first, what it hands to the others, sums, shares."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

_HOURS = 24
"""Hours that a process waits for the others: the first one may search for long."""

_splits: ContextVar[bool] = ContextVar("splits", default=False)

Item = TypeVar("Item")


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
    place = _joined(device)
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
    found = value.to(_joined(device), copy=True)
    torch.distributed.all_reduce(found)
    return found.cpu()


@contextmanager
def splitting() -> Iterator[None]:
    """In the block, all processes run the same passes, and each takes its share of calibration batches."""
    token = _splits.set(process_count() > 1)
    try:
        yield
    finally:
        _splits.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """In the block, this process works by itself, on all batches."""
    token = _splits.set(False)
    try:
        yield
    finally:
        _splits.reset(token)


def is_splitting() -> bool:
    """Return whether several processes run the same passes."""
    return _splits.get()


def agreed(number: float) -> float:
    """Return the first process's number in all processes that run the same passes, as those that follow from free memory or time."""
    if not is_splitting():
        return number
    return float(from_first(repr(float(number)).encode(), torch.device("cpu")) or b"nan")


def own_share(items: Sequence[Item]) -> tuple[dict[int, Item], bool]:
    """Return the items of this process by their places, and whether others have the rest: of fewer items than processes, each has all."""
    count = process_count()
    if not is_splitting() or len(items) < count:
        return dict(enumerate(items)), False
    first = int(os.environ.get("RANK", "0"))
    return {place: items[place] for place in range(first, len(items), count)}, True


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace tensors on the CPU by their sums over all processes, which all give tensors of the same sizes in the same order."""
    for tensor in tensors:
        tensor.copy_(summed(tensor, torch.device("cpu")))


def _joined(device: torch.device) -> torch.device:
    """Join the other processes, unless that is done, and return where what is exchanged lies."""
    gpu = device.type == "cuda"
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(hours=_HOURS))
    if "nccl" not in torch.distributed.get_backend():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
