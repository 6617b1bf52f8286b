"""Expert pruning of mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.analysis import Axis, analyze
from fxprune.dims import leaves
from fxprune.ir import Program, source_line
from fxprune.passes.fraction import Fraction


@dataclass(frozen=True)
class Experts(Fraction):
    """Remove experts of mixtures, with their rows of the router; as many stay as the router chooses for a token.

    A removed expert is never chosen, and the others share what was its; behind a gate of its own, it adds nothing. Experts are slices of
    stacked weights, or modules whose outputs are weighed and summed, or stacked: what only a removed one needs leaves with it.
    With `every_choice`, so do codes of a codebook and units of a width behind a softmax, topk or argmax, which no other pass takes.
    """

    name: ClassVar[str] = "experts"
    own: ClassVar[frozenset[str]] = frozenset({"experts"})

    every_choice: bool = False  #: also units that are no experts, and among which is chosen: codes, neurons behind a softmax or topk

    def accepts(self, axis: Axis) -> bool:
        """Return whether nodes choose among the units of this axis, and these are experts (any, with `every_choice`)."""
        return axis.exact and bool(axis.choices)

    def idle(self, program: Program) -> str:
        return super().idle(program) + "".join(f"; {why}" for why in _apart(program))

    def wanted(self) -> frozenset[str]:
        return frozenset() if self.every_choice and not self.roles else super().wanted()


def _apart(program: Program) -> list[str]:
    """Return why weights whose outputs are taken apart, index by index, have no experts that could leave sums: up to three reasons."""
    flow = analyze(program).flow
    weights = program.graph.find_nodes(op="get_attr")
    found: list[str] = []
    for of, (why, node) in flow.addends.why.items():
        taken = {*leaves(flow.dims[of.value][of.place])}
        places = [
            (each, i)
            for each in weights
            for i, dim in enumerate(flow.dims.get(each, ()))
            if taken & {*leaves(dim)}
        ]
        if places:
            each, i = places[0]
            line = source_line(node)
            found.append(
                f"dim {i} of {each.target} is taken apart, and {node.name} = {node.target} {why}{f' [{line}]' if line else ''}"
            )
    return found[:3]
