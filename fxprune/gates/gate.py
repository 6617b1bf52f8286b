"""Gates: values between closed (0) and open (1), multiplied into a graph at an axis, at a region or at blocks of a weight.

A gated Program is an ordinary module: its gates are parameters, so that any training loop can read their gradients, or learn them. A unit
of an axis is gated at every sum over it, on one of the operands (a weight where there is one), so that closing its gate equals removing it.
A gated region computes `entry + gate · (exit − entry)`. A block is a rectangle of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, fx, nn

from fxprune.analysis import Analysis, Axis
from fxprune.dims.blocks import BlockGrid
from fxprune.ir import Program

GateTarget: TypeAlias = str | tuple[str, str]
"""The name of an axis, or (axis, outer axis) for separate gates in each unit of the outer axis (the dims of each head)."""


WRAPPERS = ("_orig_mod.", "module.")
"""Prefixes that torch.compile and DistributedDataParallel put before the names of parameters."""


@dataclass(frozen=True)
class Gate:
    """One tensor of gates: the parameter `name` in the graph, and the axis, region or weight that it gates.

    `kind` is units, region or blocks; `of` names the axis, region or weight. Shapes: [size], or [outer, size] `within` another axis; [] for
    a region; that of its `grid` for blocks. The outputs of a weight with blocks lie along its dimension `outputs`; an output of its `bias`
    ("": none) is closed where all blocks of that output are.
    """

    name: str
    kind: str
    of: str
    within: str = ""
    grid: BlockGrid | None = None
    bias: str = ""
    outputs: int = 0


@dataclass(frozen=True, eq=False)
class Gated:
    """A program with gates, all open, and the program that it was made from (`base`); they share all other tensors."""

    base: Program
    program: Program
    gates: tuple[Gate, ...]

    def module(self) -> nn.Module:
        """Return an independent module to train, with the gates among its parameters.

        DistributedDataParallel ignores the gates: code that scores by their gradients has to reduce them over processes itself.
        """
        made = self.program.module()
        made._ddp_params_and_buffers_to_ignore = [gate.name for gate in self.gates]  # type: ignore[assignment]
        return made

    def values(self, tensors: Mapping[str, Tensor]) -> dict[Gate, Tensor]:
        """Return the values of the gates among a module's tensors."""
        return {gate: tensors[gate.name].detach() for gate in self.gates}


def gate_target(analysis: Analysis, axis: Axis) -> GateTarget:
    """Return the target for an axis: for query/key and value dims with their heads, where each head may keep dims of its own."""
    outer = analysis.within(axis.name) if axis.role in ("qk", "v") else ()
    return (axis.name, outer[0]) if outer else axis.name


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile and DistributedDataParallel.

    A Program's module is never unwrapped: it may have a submodule with the name that a wrapper uses.
    """
    for wrapper in () if isinstance(module, fx.GraphModule) else WRAPPERS:
        inner = getattr(module, wrapper.rstrip("."), None)
        if isinstance(inner, nn.Module):
            return unwrapped(inner)
    return module


def tensors_of(trained: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module (or a mapping of them), wrapped or not, under the names of the graph."""
    if isinstance(trained, nn.Module):
        inner = unwrapped(trained)
        return {
            **dict(inner.named_parameters(remove_duplicate=False)),
            **dict(inner.named_buffers(remove_duplicate=False)),
        }
    prefix = next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in trained)), "")
    bare = {name.removeprefix(prefix): value for name, value in trained.items()}
    return tensors_of(bare) if prefix and bare else bare
