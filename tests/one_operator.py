"""A rule against its operator: a program of one operator, its tensors cut along the axes that the rule claims, must give the cut result.

The dims of the result stay free here (a program's own analysis pins its outputs), so every claim of the rule comes to light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune import flow as flow_module
from fxprune.analysis import Analysis, analyze
from fxprune.capture import capture
from fxprune.dims import Dim
from fxprune.fit import kept_masks
from fxprune.masks import keep_mask
from fxprune.program import Program
from fxprune.rules.op import Flow
from fxprune.selection import Selection
from fxprune.shrink import shrink, zeroed


class OneOperator(nn.Module):
    """Calls a function on parameters (floating operands) and buffers (all others)."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        leaves, self.spec = pytree.tree_flatten((tuple(args), kwargs))
        self.function, self.leaves = function, leaves
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self._hold(f"t{i}", leaf.detach().clone())

    def _hold(self, name: str, value: Tensor) -> None:
        if value.is_floating_point() or value.is_complex():
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def forward(self) -> Any:
        leaves = [getattr(self, f"t{i}") if isinstance(v, Tensor) else v for i, v in enumerate(self.leaves)]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return self.function(*args, **kwargs)


@contextmanager
def free_outputs() -> Iterator[None]:
    """Analysis that does not pin the outputs of a graph."""

    def walk(program: Program) -> Flow:
        found = Flow()
        storages: dict[Any, Any] = {}
        for node in program.graph.graph.nodes:
            if node.op != "output":
                flow_module._visit(program, node, found, storages)
        flow_module._pin_overlaps(program, found)
        return found

    with mock.patch("fxprune.analysis.walk", walk):
        yield


@dataclass(frozen=True)
class Verdict:
    """What came of one check: how many axes were cut, and the largest relative difference."""

    axes: int
    exact: int
    relative: float
    unknown: tuple[str, ...] = ()


def check(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Verdict:
    """Cut every exact axis at a subset of its indices, and compare with the cut result of the zeroed original."""
    program = capture(OneOperator(function, args, kwargs))
    with free_outputs():
        analysis = analyze(program)
        exact = [axis for axis in analysis.axes if axis.exact]
        with torch.no_grad():
            worst = (
                max(_difference(program, analysis, _some(exact, phase)) for phase in (0, 1)) if exact else 0.0
            )
    return Verdict(len(analysis.axes), len(exact), worst, tuple(sorted(analysis.flow.unknown.values())))


def _some(axes: Sequence[Any], phase: int) -> Selection:
    return Selection({axis.name: range(phase, axis.size, 2) for axis in axes})


def _difference(program: Program, analysis: Analysis, selection: Selection) -> float:
    slim, oracle = shrink(program, selection), zeroed(program, selection)
    kept = kept_masks(analysis, selection)
    wanted = [_cut(value, dims, kept) for value, dims in _results(analysis, oracle)]
    got = [value for value in pytree.tree_leaves(slim()) if isinstance(value, Tensor)]
    return max((_relative(one, other) for one, other in zip(got, wanted, strict=True)), default=0.0)


def _results(analysis: Analysis, oracle: Program) -> Iterator[tuple[Tensor, tuple[Dim, ...]]]:
    values = [value for value in pytree.tree_leaves(oracle()) if isinstance(value, Tensor)]
    nodes = [node for node in analysis.program.outputs() if isinstance(node, torch.fx.Node)]
    shown = [node for node in nodes if node in analysis.flow.dims]
    for value, node in zip(values, shown, strict=True):
        yield value, analysis.flow.dims[node]


def _cut(value: Tensor, dims: tuple[Dim, ...], kept: dict[Dim, Any]) -> Tensor:
    for place, dim in enumerate(dims):
        value = value.index_select(place, keep_mask(dim, kept).nonzero().flatten())
    return value


def _relative(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if not one.numel() or torch.equal(one.nan_to_num(), other.nan_to_num()):
        return 0.0
    one, other = (x.to(torch.complex128) if x.is_complex() else x.double() for x in (one, other))
    return float((one - other).nan_to_num().abs().max() / other.nan_to_num().abs().max().clamp_min(1e-12))
