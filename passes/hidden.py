"""Hidden size pruning: the width of a residual stream. Inexact: normalisations run over fewer values, so equality is not claimed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.passes.fraction import Fraction


@dataclass(frozen=True)
class Hidden(Fraction):
    """Remove dimensions of the residual stream; inexact, since normalisations run over them, so train or calibrate afterwards."""

    name: ClassVar[str] = "hidden"
    own: ClassVar[frozenset[str]] = frozenset({"hidden"})
    inexact: ClassVar[bool] = True
