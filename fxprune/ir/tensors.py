"""Tensor helpers: identity of storage, raw bytes, results in another tensor's kind, and values moved by a rounding step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.storage import let_go, placed_like


def like(value: Tensor, result: Tensor) -> Tensor:
    """The result as a parameter where the value is one, and in a scratch file where the value is a view of a file."""
    placed = placed_like(value, result)
    return nn.Parameter(placed, value.requires_grad) if isinstance(value, nn.Parameter) else placed


def storage_key(tensor: Tensor) -> Any:
    """A key that tensors with the same memory and layout share; unique per tensor on meta, without strides, or without elements."""
    if tensor.device.type == "meta" or tensor.layout != torch.strided or not tensor.numel():
        return id(tensor)
    shape, storage = tuple(tensor.shape), tensor.untyped_storage()
    return storage.data_ptr(), tensor.storage_offset(), shape, tensor.stride(), tensor.dtype


def tensor_bytes(value: Tensor) -> memoryview:
    """The bytes of a tensor, for a digest."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def update_digest(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add names, shapes and bytes of tensors to a digest of hashlib."""
    for name, value in tensors.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(tensor_bytes(value))
        let_go(value)


def rounding_step(value: Tensor, random: torch.Generator) -> Tensor:
    """The tensor with each floating number moved by one rounding step, up or down by chance; others as they are."""
    if not value.is_floating_point():
        return value
    coin = torch.randint(0, 2, value.shape, generator=random).to(value.device, value.dtype) * 2 - 1
    return like(value, value.detach() * (1 + coin * torch.finfo(value.dtype).eps))
