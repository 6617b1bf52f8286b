"""The width of a residual stream. Inexact: a normalisation over fewer values is another one, so nothing is claimed equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.passes.fraction import Fraction


@dataclass(frozen=True)
class Hidden(Fraction):
    """Remove dimensions of the residual stream; inexact, since normalisations run over them, so train or calibrate afterwards."""

    name: ClassVar[str] = "hidden"
    roles: ClassVar[frozenset[str]] = frozenset({"hidden"})
    inexact: ClassVar[bool] = True
