"""From ratios to counts: how many stay."""

from __future__ import annotations

import math
from collections.abc import Sequence


def kept_count(size: int, ratio: float, multiple_of: int = 1) -> int:
    """How many of `size` units stay when the fraction `ratio` goes: rounded up to a multiple, never more than asked for goes."""
    wanted = size - math.floor(size * ratio + 1e-9)
    return min(size, max(1, math.ceil(wanted / multiple_of)) * multiple_of)


def common_count(sizes: Sequence[int], ratio: float, multiple_of: int = 1) -> int:
    """One number for axes of these sizes, so that the fraction `ratio` of all goes; at most what the smallest has."""
    wanted = sum(kept_count(size, ratio) for size in sizes) / len(sizes)
    return min(*sizes, math.ceil(wanted / multiple_of - 1e-9) * multiple_of)
