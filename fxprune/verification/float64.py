"""Copy of a program in float64, in which a difference of two programs is not due to rounding of float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxprune.ir import Program, copy_graph, like, rebuild
from fxprune.ir.signature import put_inputs


def to_float64(program: Program) -> Program:
    """Return the program with weights, constants, example inputs and floating dtype arguments in float64; for running only."""
    graph = copy_graph(program)
    for node in graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _type)
    tensors = {name: like(value, _wide(value.detach())) for name, value in program.tensors().items()}
    names = [node.name for node in program.placeholders()]
    inputs = zip(names, program.flat_inputs(), strict=True)
    args, kwargs = put_inputs(program, {name: _wide(value) for name, value in inputs})
    return rebuild(program, graph, tensors).replace(args=args, kwargs=kwargs)


def _type(argument: Any) -> Any:
    """Return float64 for a floating dtype, any other argument as it is."""
    return torch.float64 if isinstance(argument, torch.dtype) and argument.is_floating_point else argument


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
