"""Neuron pruning of feed-forward blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.passes.fraction import Fraction


@dataclass(frozen=True)
class Ffn(Fraction):
    """Remove neurons of feed-forward blocks: rows of what writes them and columns of what reads them, gates included."""

    name: ClassVar[str] = "ffn"
    own: ClassVar[frozenset[str]] = frozenset({"ffn"})
