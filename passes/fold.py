"""Clean-up that changes no result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.fold import folded
from fxprune.merge import merged
from fxprune.pipeline import Pass
from fxprune.program import Program
from fxprune.selection import Selection


@dataclass(frozen=True)
class Fold(Pass):
    """Compute constants once, join factors that save nothing, drop idle operators and unread weights; no output changes."""

    name: ClassVar[str] = "fold"
    preserves: ClassVar[bool] = True

    def rewrite(self, program: Program, selection: Selection) -> Program:
        return folded(merged(program))
