"""Expert pruning of mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.analysis import Axis, analyze
from fxprune.dims import Dim
from fxprune.dims.dim import segments
from fxprune.ir import Program
from fxprune.passes.fraction import Fraction


@dataclass(frozen=True)
class Experts(Fraction):
    """Remove experts of mixtures, with their rows of the router; as many stay as the router chooses for a token.

    A removed expert is never chosen, and the others share what was its. With `every_choice`, so are the codes of a codebook and the units
    of a width behind a softmax, topk or argmax, which no other pass takes.
    """

    name: ClassVar[str] = "experts"
    own: ClassVar[frozenset[str]] = frozenset({"experts"})

    every_choice: bool = False  #: also units that are no experts, and among which is chosen: codes, neurons behind a softmax or topk

    def accepts(self, axis: Axis) -> bool:
        """Return whether nodes choose among the units of this axis, and these are experts (any, with `every_choice`)."""
        return axis.exact and bool(axis.choices)

    def idle(self, program: Program) -> str:
        flow = analyze(program).flow
        nodes = program.graph.find_nodes(op="get_attr")
        apart = [(node, dim) for node in nodes for dim in flow.dims.get(node, ()) if _is_apart(dim)]
        told = [f"dim {flow.dims[node].index(dim)} of {node.target} in {dim.size}" for node, dim in apart[:3]]
        more = f"; slices of one index take apart {', '.join(told)}: experts that are modules of their own are no axis"
        return super().idle(program) + (more if told else "")

    def wanted(self) -> frozenset[str]:
        return frozenset() if self.every_choice and not self.roles else super().wanted()


def _is_apart(dim: Dim) -> bool:
    """Return whether a dim is a sum of single indices."""
    parts = segments(dim)
    return len(parts) > 1 and all(part.size == 1 for part in parts)
