"""Adapter of torchao's PT2E quantization: reads a .pt2 file, and writes one whose matrices are 8-bit integers.

Its operators `quantized_decomposed::…` are registered by importing `torchao.quantization.pt2e`. They are slow as they stand;
`torch.compile` with `torch._inductor.config.freezing` turns them into integer products (docs/results/quantization.md).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.calibration.data import flatten_batch
from fxprune.errors import ExportError
from fxprune.export import to_exported_program
from fxprune.frontend.capture import capture
from fxprune.ir import Feeds, Program, inference, innermost_reason, quiet, trees
from fxprune.ir.example_inputs import tracing_inputs
from fxprune.ir.program import checked


def torchao_version() -> str:
    """Return the version of torchao, and register its operators; ImportError where it can't be imported."""
    with quiet():  # importing it reports kernels for other machines
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer

    return str(torchao.__version__)


def quantize_pt2e(source: Path, target: Path, batches: Iterable[Feeds]) -> None:
    """Quantize matrices and their inputs, by ranges observed on the batches, for x86; ExportError where it fails."""
    with quiet(), inference():
        program = capture(source)
        try:
            torch.export.save(_exported(program, _converted(program, batches)), target)
        except Exception as error:
            raise ExportError(f"torchao could not quantize {source}: {innermost_reason(error)}") from error


def count_pt2_integers(path: Path) -> int:
    """Return how many of a file's tensors are 8-bit integers, vectors and scalars not counted."""
    with quiet():
        state = torch.export.load(path).state_dict
    return sum(value.dtype is torch.int8 and value.dim() > 1 for value in state.values())


def _converted(program: Program, batches: Iterable[Feeds]) -> fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(to_exported_program(program).module(check_guards=False), quantizer)
    for batch in batches:
        args, kwargs = _call(program, batch)
        observed(*args, **kwargs)
    converted: fx.GraphModule = convert_pt2e(observed)
    _drop_unread(converted)
    return converted


def _call(program: Program, batch: Feeds) -> Any:
    """Return (args, kwargs) for a run on a batch."""
    leaves = flatten_batch(program, {name: torch.tensor(value) for name, value in batch.items()})
    return pytree.tree_unflatten(leaves, trees(program.graph_module).in_spec)


def _drop_unread(module: fx.GraphModule) -> None:
    """Delete the tensors that no node reads: conversion leaves the float32 matrices in the module, and so in its file."""
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for owner, own in list(module.named_modules()):
        for name in [*own._parameters, *own._buffers]:
            if f"{owner}.{name}".lstrip(".") not in read and isinstance(getattr(own, name), Tensor):
                delattr(own, name)


def _exported(program: Program, module: fx.GraphModule) -> torch.export.ExportedProgram:
    args, kwargs = tracing_inputs(program)
    shapes = program.dynamic_shapes
    return torch.export.export(checked(module, program), args, kwargs, dynamic_shapes=shapes, strict=False)
