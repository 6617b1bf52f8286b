"""Channel pruning of convolutional nets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.passes.fraction import Fraction


@dataclass(frozen=True)
class Channels(Fraction):
    """Remove channels of convolutions, with the batch norms between and all that residuals and concatenations tie to them."""

    name: ClassVar[str] = "channels"
    own: ClassVar[frozenset[str]] = frozenset({"channels"})
