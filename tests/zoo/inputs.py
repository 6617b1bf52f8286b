"""Example inputs in words: `input_ids=ids/13 pixel_values=real/3x32x32` names inputs, their contents and their sizes after the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BATCH = 3
IMAGE_TOKEN = 5

Sizes = tuple[int, ...]


def parse_inputs(words: str) -> dict[str, Any]:
    """The tensors, and lists of tensors, that the words describe; the same words give the same tensors."""
    torch.manual_seed(0)
    named = (word.split("=") for word in words.split())
    return {name: _tensor(*said.split("/")) for name, said in named}


def _tensor(kind: str, *said: str) -> Tensor | list[Tensor]:
    return KINDS[kind](tuple(int(size) for part in said for size in part.split("x")))


def _padded(sizes: Sizes) -> Tensor:
    """Ones, and zeros at the end of the second sequence."""
    mask = torch.ones(BATCH, *sizes, dtype=torch.long)
    mask[1, -3:] = 0
    return mask


def _marked(sizes: Sizes) -> Tensor:
    """Token ids (batch, length), of which `count` in each row mark places of image pieces; `sizes` is (count, length)."""
    count, length = sizes
    ids = torch.randint(10, 99, (BATCH, length))
    ids[:, 1 : 1 + count] = IMAGE_TOKEN
    return ids


def _four(sizes: Sizes) -> Tensor:
    """Four ones after a zero."""
    mask = torch.zeros(BATCH, *sizes, dtype=torch.long)
    mask[:, 1:5] = 1
    return mask


KINDS: dict[str, Callable[[Sizes], Tensor | list[Tensor]]] = {
    "ids": lambda sizes: torch.randint(3, 30, (BATCH, *sizes)),
    "ones": lambda sizes: torch.ones(BATCH, *sizes, dtype=torch.long),
    "zeros": lambda sizes: torch.zeros(BATCH, *sizes, dtype=torch.long),
    "fours": lambda sizes: torch.full((BATCH, *sizes), 4),
    "four": _four,
    "numbers": lambda sizes: torch.randint(3, 30, (BATCH, *sizes)).float(),
    "padded": _padded,
    "marked": _marked,
    "real": lambda sizes: torch.randn(BATCH, *sizes),
    "unit": lambda sizes: torch.rand(BATCH, *sizes),
    "pictures": lambda sizes: [torch.rand(sizes), torch.rand(sizes)],
    "full": lambda sizes: torch.full((BATCH,), *sizes),
    "rows": lambda sizes: torch.rand(*sizes),  # no batch: nodes of one graph, positions
    "edges": lambda sizes: torch.randint(0, sizes[0], (2, sizes[1])),
    "boxes": lambda sizes: torch.randint(0, 60, (BATCH, sizes[0], 1)).expand(BATCH, *sizes).contiguous(),
}
