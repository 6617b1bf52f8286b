"""Devices: where calibration computes, and the copies of weights there.

Programs stay where they are, in memory or on disk. What runs them (`fxprune.ir.interpreter`) copies each weight to the device of the block
when it reads it, and sums stay there; copies are kept for the next batch up to a limit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from fxprune.storage.mapped import let_go

KEPT_SHARE = 0.5
"""Share of a device's free memory that copies of weights may take."""

SUM_SHARE = 1 / 8
"""Share of a device's free memory that second moments, or values that are kept, may take."""

UNKNOWN_MEMORY = 1 << 31
"""Bytes that are taken for free on a device that does not tell how much it has."""

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Kinds of devices that have no float64: what needs it is computed on the CPU."""


@dataclass(eq=False)
class _Copies:
    """Copies of tensors on a device: `limit` bytes of them, those that were used least recently go first.

    A tensor is known by its object and by how often it was written into.
    """

    device: torch.device
    limit: int
    kept: OrderedDict[int, tuple[ref[Tensor], int, Tensor]] = field(default_factory=OrderedDict)
    size: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        entry = self.kept.get(id(tensor))
        if entry is not None and entry[0]() is tensor and entry[1] == _version(tensor):
            self.kept.move_to_end(id(tensor))
            return entry[2]
        found = tensor.detach().to(self.device)
        let_go(tensor)
        self._forget(id(tensor))
        if tensor.nbytes <= self.limit:
            self._keep(tensor, found)
        return found

    def _keep(self, tensor: Tensor, found: Tensor) -> None:
        key = id(tensor)
        self.kept[key] = ref(tensor, lambda _: self._forget(key)), _version(tensor), found
        self.size += found.nbytes
        while self.size > self.limit:
            self._forget(next(iter(self.kept)))

    def _forget(self, key: int) -> None:
        entry = self.kept.pop(key, None)
        self.size -= entry[2].nbytes if entry else 0


_current: ContextVar[_Copies | None] = ContextVar("device", default=None)


@contextmanager
def computing_on(device: torch.device | None) -> Iterator[None]:
    """In the block, run programs on calibration data on a device; None, or the CPU: where their weights are."""
    there = None if device is None or device.type == "cpu" else torch.empty(0, device=device).device
    token = _current.set(_Copies(there, int(KEPT_SHARE * _free(there))) if there else None)
    try:
        yield
    finally:
        _current.reset(token)


def compute_device() -> torch.device | None:
    """Return the device of the block, None where programs run where their weights are."""
    copies = _current.get()
    return copies.device if copies else None


def on_device(value: Any) -> Any:
    """Return a tensor on the device of the block, and anything else as it is."""
    copies = _current.get()
    if copies is None or not isinstance(value, Tensor) or value.device == copies.device:
        return value
    return copies.of(value)


def to_device(value: Any) -> Any:
    """Return a tensor on the device of the block, a copy that is not kept for the next time, and anything else as it is."""
    device = compute_device()
    return value.to(device) if device is not None and isinstance(value, Tensor) else value


class OnDevice(Mapping[str, Any]):
    """View of tensors by name, each on the device of the block."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Any:
        return on_device(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def in_float64(value: Tensor) -> Tensor:
    """Return a tensor in float64, or complex128: where it is, or on the CPU if its device has neither."""
    wide = torch.complex128 if value.is_complex() else torch.float64
    return (value.cpu() if value.device.type in WITHOUT_FLOAT64 else value).to(wide)


def summed_there(value: Tensor) -> Tensor:
    """Return a sum in float64 where sums are: on the device of the block, or on the CPU if that has no float64."""
    device = compute_device()
    return value if device is None or device.type in WITHOUT_FLOAT64 else value.to(device)


def device_limit(limit: int) -> int:
    """Return a limit of bytes for sums or kept values: on the device of the block, at most SUM_SHARE of what is free there."""
    device = compute_device()
    return limit if device is None else min(limit, int(SUM_SHARE * _free(device)))


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written into; 0 for those of inference mode, which do not count it."""
    return 0 if tensor.is_inference() else tensor._version


def _free(device: torch.device) -> int:
    """Return the bytes that can be allocated on a device: what its allocator holds unused counts; UNKNOWN_MEMORY where it does not tell."""
    own: Any = getattr(torch, device.type, None)
    if not hasattr(own, "mem_get_info"):
        return UNKNOWN_MEMORY
    held = (
        own.memory_reserved(device) - own.memory_allocated(device) if hasattr(own, "memory_reserved") else 0
    )
    return int(own.mem_get_info(device)[0]) + int(held)
