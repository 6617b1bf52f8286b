"""Head pruning: whole attention heads; with grouped queries, whole groups (a key/value head with the query heads that share it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.analysis import Analysis, Axis
from fxprune.analysis.sites import outermost
from fxprune.passes.fraction import Fraction


@dataclass(frozen=True)
class Heads(Fraction):
    """Remove whole attention heads: rows of q, k and v and columns of the output projection, together."""

    name: ClassVar[str] = "heads"
    own: ClassVar[frozenset[str]] = frozenset({"heads"})

    def axes(self, analysis: Analysis) -> list[Axis]:
        return outermost(super().axes(analysis))
