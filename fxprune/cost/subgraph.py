"""Subgraphs: parts of a program as small programs of their own, whose cost can be measured."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from fxprune.errors import UsageError
from fxprune.frontend.capture import capture
from fxprune.ir import Point, Program, attribute, describe_error, operands, set_attribute
from fxprune.ir.example_inputs import call_inputs
from fxprune.ir.interpreter import Recorder
from fxprune.ir.program import flatten_inputs

# This logger prints a trace of a failure; the exception contains the reason too.
_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")

Values: TypeAlias = Mapping[fx.Node, Any]
"""The value of every node at a point: a fake tensor, a number, or several of them (a split)."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Part:
    """Some nodes of a program at fixed sizes, as a graph of their own with synthetic inputs.

    `signature` is equal for parts that compute the same with other weights.
    """

    graph: fx.GraphModule
    inputs: tuple[Tensor, ...]
    signature: str

    def program(self) -> Program:
        """Capture the part as a program."""
        return capture(self.graph, self.inputs)


def part(program: Program, names: frozenset[str], values: Values) -> Part:
    """Extract the named nodes as a part: its inputs are the values that they read from elsewhere, its outputs those read elsewhere."""
    graph, root = fx.Graph(), nn.Module()
    nodes: dict[fx.Node, Any] = {}
    inputs: list[Tensor] = []
    chosen = _chosen(program, names, values)
    for node in chosen:
        for source in operands(node):
            if source not in nodes:
                nodes[source] = _source(program, graph, root, source, values[source], inputs)
        nodes[node] = graph.node_copy(node, lambda source: nodes[source])
    inside = set(chosen)
    results = [n for n in chosen if any(user not in inside for user in n.users)]
    graph.output(tuple(nodes[node] for node in results))
    known = {made: values[node] for node, made in nodes.items() if isinstance(made, fx.Node)}
    module = fx.GraphModule(root, _placeholders_first(graph))
    return Part(module.eval(), tuple(inputs), _signature(graph, known))


def _chosen(program: Program, names: frozenset[str], values: Values) -> list[fx.Node]:
    """Return the named nodes that give a tensor; where one of several tensors is named (a split), all of them."""
    nodes = list(program.graph.nodes)
    lists = {n for n in nodes if isinstance(values.get(n), (tuple, list))}
    several = {n for n in lists if not names.isdisjoint({n.name, *(user.name for user in n.users)})}
    chosen = several | {n for n in nodes if n.name in names and isinstance(values.get(n), Tensor)}
    return [n for n in nodes if n in chosen or not several.isdisjoint(n.all_input_nodes)]


def _source(
    program: Program, graph: fx.Graph, root: nn.Module, node: fx.Node, value: Any, inputs: list[Tensor]
) -> Any:
    """Return the replacement of a value from outside the part: its number, its weight, or a new input of its size."""
    if not isinstance(value, Tensor):
        return value
    if node.op == "get_attr":
        set_attribute(root, str(node.target), attribute(program.graph_module, str(node.target)))
        return graph.get_attr(str(node.target))
    inputs.append(_made_up(value, len(inputs)))
    return graph.placeholder(f"input_{len(inputs) - 1}")


def _made_up(like: Tensor, seed: int) -> Tensor:
    """Return values of the same size and type: normal floats, else ones (a mask that lets everything through)."""
    if like.is_floating_point():
        random = torch.Generator().manual_seed(seed)
        return torch.randn(tuple(like.shape), generator=random, dtype=torch.float32).to(like.dtype)
    return torch.ones(tuple(like.shape), dtype=like.dtype)


def _placeholders_first(graph: fx.Graph) -> fx.Graph:
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in list(graph.find_nodes(op="placeholder")):
        first.prepend(node)
    return graph


class _Known(Recorder):
    """Recorder that takes values by name in place of computing them."""

    def __init__(self, program: Program, known: Mapping[str, Any]) -> None:
        super().__init__(program)
        self.known = known

    def compute(self, node: fx.Node) -> Any:
        return self.known[node.name] if node.name in self.known else super().compute(node)


def values_at(program: Program, point: Point | None, known: Mapping[str, Any] = _NOTHING) -> Values:
    """Return the value of every node at a point (None: the example inputs); UsageError where the program can't run there.

    Nodes that are `known` by name, from another program of the same inputs, are not computed.
    """
    flat, spec = pytree.tree_flatten(call_inputs(program, point))
    with _mode_of(known) as mode, torch.no_grad():
        fake = [mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in flat]
        args, kwargs = pytree.tree_unflatten(fake, spec)
        recorder, level = _Known(program, known), _FAKE_LOG.level
        _FAKE_LOG.setLevel(logging.CRITICAL)
        try:
            recorder.run_flat(flatten_inputs(program, args, kwargs))
        except Exception as error:
            where = ", ".join(f"{axis}={size}" for axis, size in (point or {}).items())
            what = f"the program can't run at {where or 'its example inputs'}"
            raise UsageError(f"{what}: {describe_error(error)}") from error
        finally:
            _FAKE_LOG.setLevel(level)
    return recorder.values


def _mode_of(known: Mapping[str, Any]) -> FakeTensorMode:
    """Return the mode of known values, for those of two modes can't be mixed; a new one where there are none."""
    modes = (value.fake_mode for value in known.values() if isinstance(value, FakeTensor))
    return next(modes, None) or FakeTensorMode(allow_non_fake_inputs=True)


def _signature(graph: fx.Graph, values: Values) -> str:
    """Return a hash of operators, sizes and literals."""
    names = {node: str(i) for i, node in enumerate(graph.nodes)}
    lines: list[str] = []
    for node in graph.nodes:
        value = values.get(node)
        shape = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else ""
        target = str(node.target) if node.op == "call_function" else ""
        args = fx.map_arg((node.args, dict(node.kwargs)), lambda n: f"%{names[n]}")
        lines.append(f"{node.op} {target} {args} {shape}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
