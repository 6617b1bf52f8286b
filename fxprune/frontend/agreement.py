"""Agreement check: a captured program must give the outputs of its module, before anything is pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.frontend.module_call import clone_inputs, uncached_kwargs, without_cache
from fxprune.ir import Program, describe_error, difference
from fxprune.ir.compare import compare_outputs
from fxprune.ir.interpreter import Recorder
from fxprune.ir.program import flatten_inputs
from fxprune.ir.torch_context import exporting

SAME = 1e-2
"""Largest relative difference of torch.export's program and the model: more than rounding of any dtype, less than another function."""


def check_same(model: nn.Module | ExportedProgram, program: Program) -> None:
    """Raise CaptureError where torch.export's program computes something else than the model on the example inputs."""
    if not isinstance(model, nn.Module):
        return
    if on_meta(model, program):
        return
    name = type(model).__name__
    with _refusing(f"{name} itself does not run on the example inputs"):
        wanted = module_outputs(model, program)
    with _refusing(f"what torch.export made of {name} does not run"):
        gap = difference_from(wanted, model, program)
    if not gap:
        return
    raise CaptureError(
        f"torch.export's program of {name} differs from the model by {gap:.2g} on the example inputs "
        f"(allowed {SAME:g}), before anything is pruned; export it yourself and pass an ExportedProgram that agrees"
    )


def difference_from(outputs: list[Tensor], model: nn.Module, program: Program) -> float:
    """Return how far a program is from outputs of its module on the example inputs; 0 where there are no values, or random ones."""
    if on_meta(model, program):
        return 0.0
    with exporting(program.graph_module):
        got = _program_outputs(program, (program.args, program.kwargs))
    gap = difference(comparable(got), comparable(outputs))
    return 0.0 if gap <= SAME or is_random(outputs, module_outputs(model, program, 1)) else gap


def same_outputs(program: Program, other: Program) -> bool:
    """Return whether two programs of the same inputs differ by no more than rounding on them; True where there are no values."""
    if on_meta(None, program):
        return True
    inputs = program.args, program.kwargs
    with exporting(program.graph_module):
        got, wanted = (comparable(_program_outputs(each, inputs)) for each in (program, other))
    return compare_outputs(got, wanted).holds


def on_meta(model: nn.Module | None, program: Program) -> bool:
    """Return whether there are no values to compare: inputs or parameters are on the meta device."""
    tensors = pytree.tree_leaves((program.args, dict(program.kwargs)))
    tensors += program.parameters().values() if model is None else model.parameters()
    return any(isinstance(value, Tensor) and value.device.type == "meta" for value in tensors)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn any error into a CaptureError that begins with `what`."""
    try:
        yield
    except Exception as error:
        raise CaptureError(f"{what}: {describe_error(error)}") from error


def module_outputs(model: nn.Module, program: Program, seed: int = 0) -> list[Tensor]:
    """Return the tensors among a module's outputs for a program's example inputs; the module runs as it would be captured."""
    return outputs_on(model, (program.args, program.kwargs), seed)


def outputs_on(
    model: nn.Module, inputs: tuple[tuple[Any, ...], Mapping[str, Any]], seed: int = 0
) -> list[Tensor]:
    """Return the tensors among a module's outputs for (args, kwargs); the module runs as it would be captured."""
    args, kwargs = inputs
    with exporting(model), without_cache(model, kwargs):
        return seeded_outputs(model, (args, {**kwargs, **uncached_kwargs(model, kwargs)}), seed)


def is_random(one: list[Tensor], other: list[Tensor]) -> bool:
    """Return whether two seeds gave different outputs: then a difference to the export is no evidence."""
    return difference(one, other) > 0


def seeded_outputs(module: nn.Module, inputs: tuple[Any, Any], seed: int = 0) -> list[Tensor]:
    """Return the tensors among a module's outputs; it writes into copies of its inputs and buffers, and draws from a seed of its own."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    args, kwargs = clone_inputs(inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        outputs = torch.func.functional_call(module, buffers, args, dict(kwargs))
    return [value for value in pytree.tree_leaves(outputs) if isinstance(value, Tensor)]


def _program_outputs(program: Program, inputs: tuple[tuple[Any, ...], Mapping[str, Any]]) -> list[Tensor]:
    """Return the tensors among a program's outputs; one that lies on disk runs node by node, and lets go of what each has read."""
    if not program.is_mapped():
        return seeded_outputs(program.graph_module, inputs)
    args, kwargs = clone_inputs(inputs)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        outputs = Recorder(program, ()).run_flat(flatten_inputs(program, args, kwargs))
    return [value for value in pytree.tree_leaves(outputs) if isinstance(value, Tensor)]


def comparable(outputs: list[Tensor]) -> list[Tensor]:
    """Return outputs of which only the floating ones have values: rounding may decide between two positions that are as good (argmax)."""
    return [value if value.is_floating_point() else torch.zeros_like(value) for value in outputs]
