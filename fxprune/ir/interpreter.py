"""Recording interpreter: run a graph and keep the value of every node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.errors import VerifyError
from fxprune.ir.program import Program


class _Recorder(fx.Interpreter):
    """Interpreter that keeps the value of every node; tensors are copied."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.values: list[tuple[str, Any]] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values.append((n.name, value.clone() if isinstance(value, Tensor) else value))
        return value


def every_value(program: Program, inputs_of: Program) -> Iterator[tuple[str, Any]]:
    """The values of a run on example inputs, as (node name, value); up to the failing node where one fails.

    The inputs are those of `inputs_of`, unless the program has free inputs. VerifyError where the first node fails.
    """
    recorder = _Recorder(program.graph_module)
    inputs = (program if program.free_inputs else inputs_of).flat_inputs()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            recorder.run(*inputs, enable_io_processing=False)
    except Exception as error:  # the values up to the failing node are the result
        if not recorder.values:
            raise VerifyError(f"the program does not run: {error}") from error
    yield from recorder.values
