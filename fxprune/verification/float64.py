"""Copy of a program in float64, in which a difference of two programs is not due to rounding of float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxprune.ir import Program, copy_graph, like, rebuild, run_example
from fxprune.ir.signature import put_inputs
from fxprune.ir.tensors import rounding_step


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


_STEPS = 64.0
"""How many times the effect of one rounding step in all weights is taken for rounding."""


def rounding_noise(program: Program, outputs: list[Tensor]) -> list[Tensor]:
    """Return how far each number of the outputs may be off by rounding, measured by moving all weights by a rounding step.

    A number gets the smallest of the largest effects along each dimension: a column of large numbers is noisy for itself alone.
    """
    found = [torch.zeros(value.shape, dtype=torch.float64, device=value.device) for value in outputs]
    for seed in (0, 1):
        random = torch.Generator().manual_seed(seed)
        moved = {name: rounding_step(value, random) for name, value in program.tensors().items()}
        again = run_example(rebuild(program, copy_graph(program), moved))
        found = [torch.maximum(a, _effect(b, c)) for a, b, c in zip(found, again, outputs, strict=True)]
    return [_STEPS * _smallest_of_largest(value) for value in found]


def _effect(again: Tensor, value: Tensor) -> Tensor:
    if again.shape != value.shape:
        return torch.zeros(value.shape, dtype=torch.float64, device=value.device)
    return (again - value).abs().to(torch.float64).nan_to_num(0.0, posinf=0.0)


def _smallest_of_largest(effect: Tensor) -> Tensor:
    if not effect.numel() or not effect.ndim:
        return effect
    sides = [effect.amax(dim, keepdim=True).expand(effect.shape) for dim in range(effect.ndim)]
    return torch.stack(sides).amin(0)


def _type(argument: Any) -> Any:
    """Return float64 for a floating dtype, any other argument as it is."""
    return torch.float64 if isinstance(argument, torch.dtype) and argument.is_floating_point else argument


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
