"""One pass over calibration data: a graph is run batch by batch, and meters see the values, and gradients, that they asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from fxprune.calibration import Calibration, flat, state
from fxprune.capture import first_line
from fxprune.errors import FxpruneError
from fxprune.objective import Objective
from fxprune.program import Program, attribute
from fxprune.writes import is_written


@dataclass
class Seen:
    """What one batch left: values by node name, and for each direction the gradients of values and of parameters."""

    values: dict[str, Tensor] = field(default_factory=dict)
    slopes: list[dict[str, Tensor]] = field(default_factory=list)


class Meter(Protocol):
    """Asks for values of nodes (`values`), gradients at nodes (`nodes`) and at parameters (`parameters`); takes them in, batch by batch."""

    values: frozenset[str]
    nodes: frozenset[str]
    parameters: frozenset[str]

    def take(self, seen: Seen) -> None:
        """One batch."""


class _Tap(fx.Interpreter):
    """Runs a graph and keeps the values that are asked for; values and parameters that gradients are asked of become differentiable."""

    def __init__(self, program: Program, values: set[str], nodes: set[str], parameters: set[str]) -> None:
        super().__init__(program.graph)
        self.writes = any(map(is_written, program.graph.graph.nodes))
        self.kept = values | nodes
        self.nodes = nodes
        self.learned = {name: attribute(program.graph, name).detach().requires_grad_() for name in parameters}
        self.given = state(program) | self.learned
        self.values: dict[str, Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self.given:
            return self.given[target]
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, Tensor) else value

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.nodes and not value.requires_grad:
            value = value.requires_grad_()
        if n.name in self.kept:
            self.values[n.name] = value
        if self.writes and n.name in self.nodes:  # what is written later on must not reach what was seen
            value = value.clone()
        elif self.writes and n.name in self.kept:
            self.values[n.name] = value.detach().clone()
        return value


def stream(program: Program, data: Calibration, meters: Sequence[Meter], objective: Objective) -> None:
    """Run every batch once and hand what it left to the meters; nothing of a batch outlives it.

    FxpruneError where the graph can't be differentiated although a meter asks for gradients.
    """
    values, nodes, parameters = (
        set().union(*(getattr(meter, name) for meter in meters)) for name in ("values", "nodes", "parameters")
    )
    random = torch.Generator().manual_seed(objective.seed)
    for batch in data.batches:
        rows = Calibration((batch,)).rows
        tap = _Tap(program, values, nodes, parameters)
        with torch.set_grad_enabled(bool(nodes or parameters)):
            outputs = tap.run(*flat(program, batch), enable_io_processing=False)
            seen = Seen({name: value.detach() for name, value in tap.values.items()})
            if nodes or parameters:
                numbers = objective.values(outputs, batch, rows / data.rows, random)
                seen.slopes = _slopes(tap, numbers)
        for meter in meters:
            meter.take(seen)


def _slopes(tap: _Tap, numbers: list[Tensor]) -> list[dict[str, Tensor]]:
    """The gradients of each number, by node and parameter."""
    sources = {name: tap.values[name] for name in tap.nodes} | tap.learned
    found = []
    for left, number in reversed(list(enumerate(numbers))):
        if not number.requires_grad:
            raise FxpruneError(
                "no output depends on the weights through differentiable operators: use a score without gradients (activation)"
            )
        try:
            given = torch.autograd.grad(
                number, list(sources.values()), retain_graph=left > 0, allow_unused=True
            )
        except RuntimeError as error:
            raise FxpruneError(f"the graph can't be differentiated: {first_line(error)}") from error
        found.append({n: g for n, g in zip(sources, given, strict=True) if g is not None})
    return found


def chunks(items: Iterable[Any], bytes_of: Any, limit: int) -> list[list[Any]]:
    """Items in their order, in as few lists as hold at most `limit` bytes each (one item may be larger)."""
    lists: list[list[Any]] = []
    room = 0
    for item in items:
        size = bytes_of(item)
        if not lists or size > room:
            lists.append([])
            room = limit
        lists[-1].append(item)
        room -= size
    return lists
