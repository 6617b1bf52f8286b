"""Recording interpreter: run a graph, and keep the values of its nodes."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from fxprune.storage import let_go
from fxprune.storage.devices import compute_device, on_device


class HasGraph(Protocol):
    """Protocol of what a recorder runs: a Program."""

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph with its tensors."""


class PlacedInterpreter(fx.Interpreter):
    """Interpreter that computes on the device of the block (`fxprune.storage.devices`): weights are copied there when they are read.

    Its inputs lie there already (see `flatten_batch`), and tensors that the graph creates itself (`arange(…, device=cpu)`) are created
    there. Without `placed`, all is where the program and its inputs are.
    """

    placed = True

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a tensor of the program, on the device."""
        found = super().get_attr(target, args, kwargs)
        return on_device(found) if self.placed else found

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """Return the arguments of a node, with the device in place of any that the graph names."""
        found = super().fetch_args_kwargs_from_env(n)
        device = compute_device() if self.placed else None
        return found if device is None else redirected(found, device)


class Recorder(PlacedInterpreter):
    """Interpreter that records the values of a run by node: of all nodes, or of those with these `names`.

    `given` replaces parameters and buffers by name. With `copies`, tensors are recorded as they are, whatever is written into them later.
    Views of files among the operands of a node are let go once it has run. With `placed`, it computes on the device of the block.
    """

    def __init__(
        self,
        program: HasGraph,
        names: Container[str] | None = None,
        given: Mapping[str, Tensor] | None = None,
        copies: bool = False,
        placed: bool = False,
    ) -> None:
        super().__init__(program.graph_module)
        self.placed = placed
        self.names, self.given, self.copies = names, given or {}, copies
        self.values: dict[fx.Node, Any] = {}
        self._buffers: dict[str, Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a tensor of the program: a parameter, or a copy of a buffer, for the graph may write into it."""
        if target in self.given:
            return self.given[target]
        own = self.fetch_attr(target)
        there = on_device(own) if self.placed else own
        if isinstance(own, nn.Parameter) or not isinstance(own, Tensor):
            return there
        if target not in self._buffers:
            self._buffers[target] = there.clone()
        return self._buffers[target]

    def run_node(self, n: fx.Node) -> Any:
        value = self.compute(n)
        let_go_operands(n, self.env)
        if self.names is None or n.name in self.names:
            self.values[n] = value.clone() if self.copies and isinstance(value, Tensor) else value
        return value

    def compute(self, node: fx.Node) -> Any:
        """Return the value of a node."""
        return super().run_node(node)

    def run_flat(self, inputs: Sequence[Any]) -> Any:
        """Run on inputs in the order of the placeholders; the result has the graph's own structure, of nested tuples."""
        return self.run(*inputs, enable_io_processing=False)


def redirected(given: Any, device: torch.device) -> Any:
    """Return arguments with a device in place of those that they name."""
    return fx.node.map_aggregate(given, lambda value: device if isinstance(value, torch.device) else value)


def let_go_operands(node: fx.Node, env: Mapping[fx.Node, Any]) -> None:
    """Let go of the memory of a node's operands that are views of files."""
    for source in node.all_input_nodes:
        value = env.get(source)
        if isinstance(value, Tensor):
            let_go(value)
