"""Prefixes: kept values of a program, from which a variant runs that computes the same up to its first change.

A search tries hundreds of cuts, one place each: what lies before the place is not computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis import Analysis, analyze
from fxprune.calibration.data import Batch, flatten_batch, run_batch, state
from fxprune.ir import Program
from fxprune.ir.arguments import with_sources
from fxprune.ir.edit import unchanged_nodes
from fxprune.ir.interpreter import Recorder
from fxprune.rules import is_written

Start = dict[fx.Node, Any]
"""Values from which a run begins, by node."""


class Prefixes:
    """Values of a program on some batches: those that its regions read (see `read_by_regions`), while they fit into `limit` bytes.

    Nothing is kept of a program that writes into values, or whose inputs may shrink.
    """

    def __init__(self, program: Program, batches: Sequence[Batch], limit: int) -> None:
        self.program, self.batches = program, tuple(batches)
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._last: tuple[Program, set[fx.Node]] = program, set(program.graph.nodes)
        none = not batches or program.free_inputs or any(map(is_written, program.graph.nodes))
        wanted = set() if none else read_by_regions(analyze(program))
        for batch in {id(batch): batch for batch in batches}.values() if wanted else ():
            recorder = Recorder(program, wanted, placed=True)
            with torch.no_grad():
                recorder.run_flat(flatten_batch(program, batch))
            values = {node.name: value for node, value in recorder.values.items()}
            limit -= sum(value.untyped_storage().nbytes() for value in values.values())
            if limit < 0:
                break
            self._kept[id(batch)] = values

    def start(self, variant: Program, batch: Batch) -> Start:
        """Return the values of a batch that a variant has, too; none of a batch that is not one of those given."""
        kept = self._kept.get(id(batch))
        if kept is None:
            return {}
        if variant is not self._last[0]:
            self._last = variant, unchanged_nodes(self.program, variant)
        return {node: kept[node.name] for node in self._last[1] if node.name in kept}

    def run(self, variant: Program, batch: Batch) -> Any:
        """Return a variant's results for a batch; it writes into copies of its buffers."""
        start = self.start(variant, batch)
        if not start:
            return run_batch(variant, batch)
        needed = with_sources([variant.graph.output_node()], start)
        with torch.no_grad():
            given = flatten_batch(variant, batch)
            return _FromStart(variant, state(variant), needed).run(
                *given, initial_env=start, enable_io_processing=False
            )


def read_by_regions(analysis: Analysis) -> set[str]:
    """Return the tensors that regions read from outside of them, as masks and the stream before a layer are; the weights aside."""
    nodes = {node.name: node for node in analysis.program.graph.nodes}
    read: set[fx.Node] = set()
    for region in analysis.regions:
        inside = (nodes[name] for name in region.nodes)
        read.update(
            source for node in inside for source in node.all_input_nodes if source.name not in region.nodes
        )
    return {each.name for each in read if each.op == "call_function" and isinstance(each.meta["val"], Tensor)}


class _FromStart(Recorder):
    """Interpreter that runs what is needed alone."""

    def __init__(self, program: Program, given: Mapping[str, Tensor], needed: set[fx.Node]) -> None:
        super().__init__(program, (), given, placed=True)
        self.needed = needed

    def compute(self, node: fx.Node) -> Any:
        needed = node in self.needed or node.op == "placeholder"
        return super().compute(node) if needed else None
