"""Empty units: remove units that zeros in the weights have left without effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.analysis import analyze
from fxprune.gates.lower import close_dead_units, lower_silenced, select_open
from fxprune.ir import Program, Selection
from fxprune.pipeline import EMPTY, Context, Outcome, Scoped


@dataclass(frozen=True)
class Empty(Scoped):
    """Remove units that zeros in the weights have emptied (after unstructured or block pruning elsewhere); no output changes."""

    name: ClassVar[str] = "empty"
    preserves: ClassVar[bool] = True

    def run(self, program: Program, context: Context = EMPTY) -> Outcome:
        """Remove the empty units and move constants into biases; the parameters that this changes count as re-fitted."""
        ready = close_dead_units(program, takes=self.scope(analyze(program)).takes)
        slim = lower_silenced(ready).program
        kept: Selection = select_open(analyze(program), ready.units)
        return Outcome(slim, kept, _changed(program, slim), {"gone": list(ready.gone)})


def _changed(program: Program, slim: Program) -> tuple[str, ...]:
    """Return the names of the parameters that are new or hold another tensor than before."""
    before = program.tensors()
    return tuple(name for name, value in slim.parameters().items() if value is not before.get(name))
