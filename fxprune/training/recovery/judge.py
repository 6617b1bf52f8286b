"""HeldBackLoss: the loss at the outputs on rows that nothing is trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.calibration.processes import from_first, summed
from fxprune.training.recovery.lesson import Lesson, Original, Shown

KEPT = 2**30
"""Bytes of the original's outputs on held-back rows that are kept; further ones are computed again each time."""


class HeldBackLoss:
    """Mean loss over held-back batches of flat inputs, each weighted by its rows, over all processes; `device` is that of the weights."""

    def __init__(
        self, original: Original, batches: Sequence[tuple[int, list[Any]]], device: torch.device
    ) -> None:
        self.original, self.batches, self.device = original, list(batches), device
        self._kept: list[Shown | None] = [None] * len(batches)
        self._bytes = 0

    def shown(self) -> Iterator[Shown]:
        """Yield what the original says on each batch, the values inside included."""
        for place, (_, flat) in enumerate(self.batches):
            yield self._said(place, flat)

    def limit(self, rows: int) -> HeldBackLoss | None:
        """Judge on the first batches of at least so many rows; return a judge on as many of the others, None where there are none.

        Several processes take equally many, as many as the first of them.
        """
        counts = [_batches_of(self.batches, least) for least in (rows, 2 * rows)]
        said = from_first(json.dumps(counts).encode(), self.device)
        first, second = json.loads(said or b"[0, 0]")
        others = self.batches[first:second]
        self.batches, self._kept = self.batches[:first], self._kept[:first]
        return HeldBackLoss(self.original, others, self.device) if others else None

    def loss(self, lesson: Lesson) -> float:
        """Return the loss of a lesson's program as it is now; infinite where it is no number."""
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for place, (rows, flat) in enumerate(self.batches):
                found, _ = lesson(flat, self._said(place, flat))
                sums += torch.tensor([rows * float(found), rows], dtype=torch.float64)
        total, rows = summed(sums, self.device).tolist()
        return total / rows if math.isfinite(total) else math.inf

    def _said(self, place: int, flat: list[Any]) -> Shown:
        kept = self._kept[place]
        if kept is not None:
            return kept
        shown = self.original.show(flat)
        size = sum(value.nbytes for value in pytree.tree_leaves((shown.outputs, shown.inside)))
        if self._bytes + size <= KEPT:
            self._kept[place] = shown
            self._bytes += size
        return shown


def _batches_of(batches: Sequence[tuple[int, list[Any]]], rows: int) -> int:
    """Return how many of the first batches have at least so many rows: all where these have fewer."""
    totals = accumulate(count for count, _ in batches)
    return next((place for place, total in enumerate(totals, 1) if total >= rows), len(batches))
