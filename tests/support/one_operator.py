"""Check of a rule against its operator: a program of one operator, its tensors cut along the claimed axes, must give the cut result.

All outputs are free here, so that every claim of the rule about its result is checked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from fxprune.analysis import Analysis, analyze
from fxprune.dims import Dim
from fxprune.dims.masks import keep_mask
from fxprune.frontend.capture import capture
from fxprune.ir import Program, Selection
from fxprune.rewrite import zero_readers
from fxprune.rewrite.shrink import kept_masks, shrink
from fxprune.rules import packet_of

aten = torch.ops.aten


class OneOperator(nn.Module):
    """Module that calls a function on parameters (floating operands) and buffers (all others)."""

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


@dataclass(frozen=True)
class Verdict:
    """Result of one check: numbers of axes and of exact ones, largest relative difference, unknown operators, all operators."""

    axes: int
    exact: int
    relative: float
    unknown: tuple[str, ...] = ()
    operators: frozenset[Any] = frozenset()


def check(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Verdict:
    """Cut every exact axis at a subset of its indices, and compare with the cut result of the zeroed original."""
    net = OneOperator(function, args, kwargs)
    return check_program(capture(net, training=True))  # in evaluation, what weights alone give is folded


def check_program(program: Program) -> Verdict:
    """Check a program that was captured or made by hand."""
    program = program.replace(free_outputs=frozenset(program.output_names()))
    analysis = analyze(program)
    exact = [axis for axis in analysis.axes if axis.exact]
    with torch.no_grad():
        worst = max(_difference(program, analysis, _some(exact, phase)) for phase in (0, 1)) if exact else 0.0
    if len(exact) < len(analysis.axes):
        shrink(program, _some(analysis.axes, 0))()  # no claim about values, but it must run
    called = frozenset(packet_of(n.target) for n in program.graph.nodes if n.op == "call_function")
    return Verdict(
        len(analysis.axes), len(exact), worst, tuple(sorted(analysis.flow.unknown.values())), called
    )


def by_hand(target: Any, *args: Any, cast: bool = False, **kwargs: Any) -> Program:
    """A program that calls exactly this operator, which torch.export would decompose; an operator in place writes into a copy.

    With `cast`, integers and booleans come from parameters that are cast, so that their dims are axes.
    """
    holder, graph = OneOperator(target, args, kwargs), fx.Graph()
    with torch.no_grad():
        leaves = [_leaf(graph, holder, place, cast) for place in range(len(holder.leaves))]
        if target._schema.is_mutable:
            leaves[0] = _called(graph, aten.clone.default, leaves[0])
        own_args, own_kwargs = pytree.tree_unflatten(leaves, holder.spec)
        result = _called(graph, target, *own_args, **own_kwargs)
        value = result.meta["val"]
        parts = value if isinstance(value, (tuple, list)) else None
        out = [_called(graph, operator.getitem, result, i) for i in range(len(parts))] if parts else [result]
    graph.output(tuple(out))
    spec = pytree.tree_structure(((), {}))
    info = _PyTreeInfo([], spec, pytree.tree_structure(tuple(0 for _ in out)))
    graph.set_codegen(_PyTreeCodeGen(info))
    return Program(fx.GraphModule(holder, graph))


def _leaf(graph: fx.Graph, holder: OneOperator, place: int, cast: bool) -> Any:
    leaf = holder.leaves[place]
    if not isinstance(leaf, Tensor):
        return leaf
    plain = leaf.is_floating_point() or leaf.is_complex() or not cast
    if not plain:
        delattr(holder, f"t{place}")
        holder.register_parameter(f"t{place}", nn.Parameter(leaf.double()))
    node = graph.get_attr(f"t{place}")
    node.meta["val"] = getattr(holder, f"t{place}")
    return node if plain else _called(graph, aten._to_copy.default, node, dtype=leaf.dtype)


def _called(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A node that calls an operator, with its value in `meta`."""
    node = graph.call_function(target, args, kwargs)
    values = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    node.meta["val"] = target(*values[0], **values[1])
    return node


def _some(axes: Sequence[Any], phase: int) -> Selection:
    return Selection({axis.name: range(phase, axis.size, 2) for axis in axes})


def _difference(program: Program, analysis: Analysis, selection: Selection) -> float:
    slim, oracle = shrink(program, selection), zero_readers(program, selection)
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
    one, other = (x.to(torch.complex128) if x.is_complex() else x.double() for x in (one, other))
    if not one.numel() or torch.equal(one.nan_to_num(), other.nan_to_num()):
        return 0.0
    return float((one - other).nan_to_num().abs().max() / other.nan_to_num().abs().max().clamp_min(1e-12))
