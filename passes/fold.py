"""Clean-up that changes no result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.fold import folded
from fxprune.pipeline import Pass
from fxprune.program import Program
from fxprune.selection import Selection


@dataclass(frozen=True)
class Fold(Pass):
    """Compute constants once, drop operators that do nothing and weights that no result needs; no output changes."""

    name: ClassVar[str] = "fold"
    preserves: ClassVar[bool] = True

    def rewrite(self, program: Program, selection: Selection) -> Program:
        return folded(program)
