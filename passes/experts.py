"""Expert pruning of mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.passes.fraction import Fraction


@dataclass(frozen=True)
class Experts(Fraction):
    """Remove experts of mixtures, with their rows of the router; as many stay as the router chooses for a token."""

    name: ClassVar[str] = "experts"
    roles: ClassVar[frozenset[str]] = frozenset({"experts"})
