"""Calibration pass: run a graph batch by batch, and pass the requested values and gradients to observers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from fxprune.calibration.data import Calibration, flatten_batch, state
from fxprune.calibration.objective import Objective
from fxprune.calibration.validation import check_range
from fxprune.errors import FxpruneError
from fxprune.ir import Program, attribute, describe_error
from fxprune.ir.interpreter import Recorder
from fxprune.rules import is_written
from fxprune.rules.aliasing import returns_alias


@dataclass
class BatchRecord:
    """Record of one batch: values by node name, and for each differentiated number the gradients by node and parameter name."""

    values: dict[str, Tensor] = field(default_factory=dict)
    slopes: list[dict[str, Tensor]] = field(default_factory=list)


class Observer(Protocol):
    """Protocol of an observer: it requests values of nodes (`values`), and gradients at `nodes` and `parameters`, batch by batch."""

    values: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()

    def take(self, seen: BatchRecord) -> None:
        """Take in the record of one batch."""


class _Recorder(Recorder):
    """Recorder that makes nodes and parameters differentiable where gradients are requested.

    A value that the graph overwrites is recorded as its last reader got it.
    """

    def __init__(self, program: Program, values: set[str], nodes: set[str], parameters: set[str]) -> None:
        own = {name: attribute(program.graph_module, name).detach() for name in parameters}
        learned = {name: value.requires_grad_() for name, value in own.items()}
        super().__init__(program, values, state(program) | learned)
        self.writes = any(map(is_written, program.graph.nodes))
        self.nodes, self.sources = nodes, learned

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.detach() if isinstance(value, Tensor) and target not in self.given else value

    def compute(self, node: fx.Node) -> Any:
        if self.writes and not returns_alias(node):
            read = self.values.keys() & set(node.all_input_nodes)
            self.values |= {source: self.env[source].detach().clone() for source in read}
        value = super().compute(node)
        if node.name in self.nodes:
            self.sources[node.name] = value if value.requires_grad else value.requires_grad_()
            value = value.clone() if self.writes else value
        return value


def run_calibration(
    program: Program, data: Calibration, meters: Sequence[Observer], objective: Objective
) -> None:
    """Run every batch once, and pass its record to the observers; the record of a batch is not kept.

    FxpruneError where the graph can't be differentiated although an observer requests gradients.
    """
    values, nodes, parameters = (
        set().union(*(getattr(meter, name) for meter in meters)) for name in ("values", "nodes", "parameters")
    )
    random = torch.Generator().manual_seed(objective.seed)
    for batch in data.batches:
        rows = Calibration((batch,)).rows
        tap = _Recorder(program, values, nodes, parameters)
        with torch.set_grad_enabled(bool(nodes or parameters)):
            outputs = tap.run_flat(flatten_batch(program, batch))
            seen = BatchRecord({node.name: value.detach() for node, value in tap.values.items()})
            for name, value in seen.values.items():
                check_range(repr(name), value)
            if nodes or parameters:
                numbers = objective.values(outputs, batch, rows / data.rows, random)
                seen.slopes = _slopes(tap, numbers)
        for meter in meters:
            meter.take(seen)


def _slopes(tap: _Recorder, numbers: list[Tensor]) -> list[dict[str, Tensor]]:
    """Return the gradients of each number, the last number first, by node and parameter."""
    found = []
    for left, number in reversed(list(enumerate(numbers))):
        if not number.requires_grad:
            raise FxpruneError(
                "no output depends on the weights through differentiable operators: use a score without gradients (activation)"
            )
        sources = list(tap.sources.values())
        try:
            given = torch.autograd.grad(number, sources, retain_graph=left > 0, allow_unused=True)
        except RuntimeError as error:
            raise FxpruneError(f"the graph can't be differentiated: {describe_error(error)}") from error
        slopes = {name: slope for name, slope in zip(tap.sources, given, strict=True) if slope is not None}
        for name, slope in slopes.items():
            check_range(f"the gradient at {name}", slope)
        found.append(slopes)
    return found


def pack_by_bytes(items: Iterable[Any], bytes_of: Any, limit: int) -> list[list[Any]]:
    """Split items, in their order, into as few lists as possible of at most `limit` bytes each (a single item may be larger)."""
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
