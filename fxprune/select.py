"""From scores to kept indices: how many stay, and which."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kept_count(size: int, ratio: float, multiple_of: int = 1) -> int:
    """How many of `size` units stay when the fraction `ratio` goes: rounded up to a multiple, never more than asked for goes."""
    wanted = size - math.floor(size * ratio + 1e-9)
    return min(size, max(1, math.ceil(wanted / multiple_of)) * multiple_of)


def keep_best(worth: Tensor, count: int) -> list[int]:
    """The indices of the `count` units of highest worth, ascending; of equal ones the first stay."""
    order = torch.sort(worth, descending=True, stable=True).indices
    return sorted(order[:count].tolist())
