"""From ratios to counts: how many stay."""

from __future__ import annotations

import math


def kept_count(size: int, ratio: float, multiple_of: int = 1) -> int:
    """How many of `size` units stay when the fraction `ratio` goes: rounded up to a multiple, never more than asked for goes."""
    wanted = size - math.floor(size * ratio + 1e-9)
    return min(size, max(1, math.ceil(wanted / multiple_of)) * multiple_of)
