"""Lockstep execution: run several batches through a graph, pausing at a node and keeping live values in memory or on disk."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.calibration.data import flatten_batch, state
from fxprune.calibration.prefixes import Start
from fxprune.ir import Program
from fxprune.ir.arguments import with_sources
from fxprune.ir.interpreter import PlacedInterpreter, let_go_operands
from fxprune.storage.devices import on_device


class Runner(PlacedInterpreter):
    """Interpreter of one batch that runs up to a node and pauses there.

    A value is dropped after its last reader, and after `reach` has returned it as often as `wanted` lists it. The runner holds copies of
    the buffers that the graph writes into. From a `start` it runs no more than the wanted nodes need.
    """

    def __init__(
        self,
        program: Program,
        batch: dict[str, Tensor],
        wanted: Sequence[fx.Node],
        start: Start | None = None,
    ) -> None:
        super().__init__(program.graph_module)
        self.new: Mapping[str, Tensor] = {}
        self.state = state(program)
        self.waiting = [n for n in program.graph.nodes if n.op not in ("output", "get_attr")]
        self.waiting.reverse()
        start = start or {}
        if start:
            needed = with_sources(wanted, start)
            self.waiting = [node for node in self.waiting if node in needed]
        running = {*self.waiting, program.graph.output_node()}
        self.readers = Counter({n: sum(u in running for u in n.users) for n in program.graph.nodes})
        self.readers.update(wanted)
        given = zip(program.placeholders(), flatten_batch(program, batch), strict=True)
        self.env: dict[fx.Node, Any] = dict(given) | start
        graph = program.graph_module
        lasting = (
            *graph.parameters(),
            *graph.buffers(),
            *self.state.values(),
            *batch.values(),
            *start.values(),
        )
        self.lasting = {_place(tensor) for tensor in lasting}

    def live(self) -> dict[str, Any]:
        """Return the values that wait to be read, by node name, except those that share memory with weights, buffers or inputs."""
        return {n.name: v for n, v in self.env.items() if any(map(self._passes, pytree.tree_leaves(v)))}

    def put(self, values: Mapping[str, Any]) -> None:
        """Restore values of `live`, or free them: None replaces a value in memory, and its node counts as computed."""
        self.env |= {node: values[node.name] for node in self.env if node.name in values}

    def _passes(self, value: Any) -> bool:
        return isinstance(value, Tensor) and _place(value) not in self.lasting

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        held = self.new if target in self.new else self.state
        return on_device(held[target]) if target in held else super().get_attr(target, args, kwargs)

    def reach(self, wanted: fx.Node, new: Mapping[str, Tensor]) -> Tensor:
        """Run up to a node and return its value, with the parameters `new` in place of the graph's; uses up one entry of `wanted`."""
        self.new = new
        with torch.no_grad():
            while wanted not in self.env or wanted in self.waiting[-1:]:
                self._step(self.waiting.pop())
        value = self.env[wanted]
        assert isinstance(value, Tensor)
        self._read(wanted)
        return value.detach()  # a view of a parameter requires gradients even under no_grad

    def _read(self, node: fx.Node) -> None:
        self.readers[node] -= 1
        if not self.readers[node]:
            del self.env[node]

    def _step(self, node: fx.Node) -> None:
        """Run a node; weights are read anew each time, as they may have been re-fitted since."""
        weights = [source for source in node.all_input_nodes if source.op == "get_attr"]
        self.env |= {source: self.get_attr(source.target, (), {}) for source in weights}
        if node not in self.env:
            self.env[node] = self.run_node(node)
            let_go_operands(node, self.env)
        for source in weights:
            del self.env[source]
        for source in set(node.all_input_nodes).difference(weights):
            self._read(source)


class ActivationStore:
    """Store for the live values of runners: at most `limit` bytes in memory, the rest in a temporary folder until they are used again.

    Runners take turns, so a runner in memory stays there while it fits: that needs fewer reads from disk than evicting the oldest.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside: dict[Runner, int] = {}
        self.outside: dict[Runner, Path] = {}

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="fxprune-parking-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    @contextmanager
    def out(self, *runners: Runner) -> Iterator[None]:
        """Load the values of these runners for the time of the block, in which they can run."""
        for runner in runners:
            self.inside.pop(runner, None)
            if runner in self.outside:
                runner.put(torch.load(self.outside.pop(runner), weights_only=True))
        yield
        for runner in runners:
            self._park(runner)

    def _park(self, runner: Runner) -> None:
        live = runner.live()
        size = _bytes(live)
        if sum(self.inside.values()) + size <= self.limit:
            self.inside[runner] = size
            return
        self.outside[runner] = Path(self._folder.name) / f"{id(runner)}.pt"
        torch.save(live, self.outside[runner])
        runner.put(dict.fromkeys(live))


def _bytes(values: Mapping[str, Any]) -> int:
    """Return the size of the tensors in bytes, each storage counted once."""
    leaves = [leaf for leaf in pytree.tree_leaves(dict(values)) if isinstance(leaf, Tensor)]
    return sum({_place(leaf): leaf.untyped_storage().nbytes() for leaf in leaves}.values())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
