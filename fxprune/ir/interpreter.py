"""Recording interpreter: run a graph, and keep the values of its nodes."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import VerifyError
from fxprune.ir.program import Program


class Recorder(fx.Interpreter):
    """Interpreter that records the values of a run by node: of all nodes, or of those with these `names`.

    `given` replaces parameters and buffers by name. With `copies`, tensors are recorded as they are, whatever is written into them later.
    """

    def __init__(
        self,
        program: Program,
        names: Container[str] | None = None,
        given: Mapping[str, Tensor] | None = None,
        copies: bool = False,
    ) -> None:
        super().__init__(program.graph_module)
        self.names, self.given, self.copies = names, given or {}, copies
        self.values: dict[fx.Node, Any] = {}
        self._buffers: dict[str, Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a tensor of the program: a parameter, or a copy of a buffer, for the graph may write into it."""
        if target in self.given:
            return self.given[target]
        found = super().get_attr(target, args, kwargs)
        if isinstance(found, nn.Parameter) or not isinstance(found, Tensor):
            return found
        return self._buffers.setdefault(target, found.clone())

    def run_node(self, n: fx.Node) -> Any:
        value = self.compute(n)
        if self.names is None or n.name in self.names:
            self.values[n] = value.clone() if self.copies and isinstance(value, Tensor) else value
        return value

    def compute(self, node: fx.Node) -> Any:
        """Return the value of a node."""
        return super().run_node(node)

    def run_flat(self, inputs: Sequence[Any]) -> Any:
        """Run on inputs in the order of the placeholders; the result has the graph's own structure, of nested tuples."""
        return self.run(*inputs, enable_io_processing=False)


def every_value(program: Program, inputs_of: Program) -> Iterator[tuple[str, Any]]:
    """The values of a run on example inputs, as (node name, value); up to the failing node where one fails.

    The inputs are those of `inputs_of`, unless the program has free inputs. VerifyError where the first node fails.
    """
    recorder = Recorder(program, copies=True)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            recorder.run_flat((program if program.free_inputs else inputs_of).flat_inputs())
    except Exception as error:  # the values up to the failing node are the result
        if not recorder.values:
            raise VerifyError(f"the program does not run: {error}") from error
    yield from ((node.name, value) for node, value in recorder.values.items())
