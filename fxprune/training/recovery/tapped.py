"""Tapped graphs: a program as a module of flat inputs that returns its outputs together with values inside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from fxprune.ir import Program, attribute, copy_graph, rebuild, set_attribute
from fxprune.ir.program import deep_copy
from fxprune.rules import is_written
from fxprune.training.recovery.distances import floating_outputs


def passed_on(own: Tensor, given: Tensor | None) -> Tensor:
    """Return the value that the rest of a graph reads: the one that is given, where there is one."""
    return own if given is None else given


def tapped(program: Program, taps: Sequence[str], own: bool) -> fx.GraphModule:
    """Return a module that takes the inputs of the placeholders, then one value or None for each tap, and returns two tuples.

    They are the floating-point outputs, and the values of the nodes `taps`; where a value is given for a tap, what follows reads that one
    instead. With `own`, parameters and buffers are copies.
    """
    graph = copy_graph(program)
    nodes = {node.name: node for node in graph.nodes}
    outputs = tuple(nodes[node.name] for node in floating_outputs(program).values())
    values = tuple(nodes[name] for name in taps)
    last = list(graph.find_nodes(op="placeholder"))[-1]
    for place, value in enumerate(values):
        with graph.inserting_after(last):
            last = graph.placeholder(f"fxprune_given_{place}", default_value=None)
        with graph.inserting_after(value):
            reads = graph.call_function(passed_on, (value, last))
        value.replace_all_uses_with(reads, delete_user_cb=lambda user, reads=reads: user is not reads)
    graph.output_node().args = ((outputs, values),)
    graph.set_codegen(CodeGen())
    module = rebuild(program, graph, {}).graph_module
    return deep_copy(module) if own else module


def written_buffers(program: Program) -> tuple[str, ...]:
    """Return the buffers that the graph writes into."""
    return tuple(str(node.target) for node in program.graph.find_nodes(op="get_attr") if is_written(node))


@contextmanager
def restoring(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Run the block on copies of these buffers: each run of a graph starts from the same state."""
    own = {name: attribute(module, name) for name in names}
    for name, value in own.items():
        set_attribute(module, name, value.clone())
    try:
        yield
    finally:
        for name, value in own.items():
            set_attribute(module, name, value)


def moved(values: Sequence[Any], device: torch.device) -> list[Any]:
    """Return flat inputs with their tensors on a device."""
    return [value.to(device) if isinstance(value, Tensor) else value for value in values]
