"""Clean-up that changes no output: constant folding, merging of factors, dead code elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.ir import Program, Selection, copy_graph, rebuild
from fxprune.pipeline import Pass
from fxprune.rewrite import remove_dead
from fxprune.rewrite.constant_folding import fold_constants
from fxprune.rewrite.dead_code import drop_idle
from fxprune.rewrite.merge_factors import merge_factors


@dataclass(frozen=True)
class Fold(Pass):
    """Compute constants once, join factors that save nothing, drop idle operators and unread weights; no output changes."""

    name: ClassVar[str] = "fold"
    preserves: ClassVar[bool] = True

    def rewrite(self, program: Program, selection: Selection) -> Program:
        return fold(merge_factors(program))


def fold(program: Program) -> Program:
    """Return the program with constants folded, and without no-op operators, dead code and unread weights."""
    clean = rebuild(program, copy_graph(program), {})
    drop_idle(clean.graph_module)
    fold_constants(clean.graph_module)
    remove_dead(clean.graph_module)
    clean.graph.lint()
    clean.graph_module.recompile()
    return clean
