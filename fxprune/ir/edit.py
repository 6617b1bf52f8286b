"""Graph edits: new calls, buffers and parameters, and replaced uses, with node metadata kept up to date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fxprune.ir.program import Program, attribute, copy_graph, rebuild, set_attribute, source_line
from fxprune.ir.tensors import like, storage_key
from fxprune.storage import adopt, is_mapped, to_disk


def with_tensors(program: Program, values: Mapping[str, Tensor]) -> Program:
    """The program with other values of some of its tensors, by name; tied ones stay one (the first of them counts)."""
    made: dict[Any, Tensor] = {}
    new: dict[str, Tensor] = {}
    for name, own in program.tensors().items():
        if name in values:
            key = storage_key(own)
            made[key] = new[name] = made[key] if key in made else like(own, values[name].to(own))
    return rebuild(program, copy_graph(program), new)


def on_disk(program: Program) -> Program:
    """The program with its tensors as views of files: of those that a loader left as such, else of scratch files.

    What is one tensor under several names stays one; views of one memory in several layouts become several.
    """
    own = program.tensors()
    adopt(own.values())
    written: dict[Any, Tensor] = {}
    made: dict[Any, Tensor] = {}
    new: dict[str, Tensor] = {}
    for name, value in own.items():
        key, learned = storage_key(value), isinstance(value, nn.Parameter)
        written[key] = written[key] if key in written else to_disk(value.detach())
        kind = key, learned, value.requires_grad
        if kind not in made:
            moved = is_mapped(written[key]) and not is_mapped(value)
            made[kind] = like(value, written[key]) if moved else value
        new[name] = made[kind]
    return rebuild(program, copy_graph(program), new)


def unchanged_nodes(before: Program, after: Program) -> set[fx.Node]:
    """The nodes of an edited program that compute what the nodes of the same names did before, on the same tensors."""
    own = {node.name: node for node in before.graph.nodes}
    same: set[fx.Node] = set()
    for node in after.graph.nodes:
        if not same.issuperset(node.all_input_nodes) or not is_same_call(own.get(node.name), node):
            continue
        if node.op != "get_attr" or _tensor(before, node) is _tensor(after, node):
            same.add(node)
    return same


def _tensor(program: Program, node: fx.Node) -> Any:
    return attribute(program.graph_module, str(node.target))


def is_same_call(was: fx.Node | None, node: fx.Node) -> bool:
    """Whether a node of an edited graph calls what the node of its name did before, on nodes of the same names."""
    if was is None or (was.op, was.target) != (node.op, node.target):
        return False
    return repr((was.args, was.kwargs)) == repr((node.args, node.kwargs))  # nodes show as their names


def fake_mode(graph: fx.GraphModule) -> FakeTensorMode:
    """The FakeTensorMode of the graph's values (a new one where it has none)."""
    for node in graph.graph.nodes:
        if isinstance(node.meta.get("val"), FakeTensor):
            mode = node.meta["val"].fake_mode
            assert isinstance(mode, FakeTensorMode)
            return mode
    return FakeTensorMode()


def call(
    graph: fx.GraphModule, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> fx.Node:
    """Insert a call at the insertion point, and return it.

    Its value is computed on fake tensors; its stack trace is that of its last operand that has one.
    """
    node = graph.graph.call_function(target, args, kwargs or {})
    node.meta["val"] = fake_value(graph, node)
    sources = [n for n in node.all_input_nodes if "stack_trace" in n.meta]
    if sources:
        node.meta["stack_trace"] = sources[-1].meta["stack_trace"]
        node.meta["nn_module_stack"] = sources[-1].meta.get("nn_module_stack", {})
    return node


def size_of(graph: fx.GraphModule, node: fx.Node, place: int) -> Any:
    """The size of dimension `place` of a value: an integer, or a new node where it is symbolic."""
    size = node.meta["val"].shape[place]
    return size if isinstance(size, int) else call(graph, torch.ops.aten.sym_size.int, (node, place))


def fake_value(graph: fx.GraphModule, node: fx.Node) -> Any:
    """The value of a node, computed on fake tensors from its operands' values."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with fake_mode(graph), torch.no_grad(), enable_python_dispatcher():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def add_buffer(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Add a buffer under a free name, and return a new node that reads it at the insertion point."""
    wanted, number = name, 0
    while hasattr(graph, wanted):
        wanted, number = f"{name}_{number}", number + 1
    return add_parameter(graph, wanted, value)


STANDS_FOR = "stands_for"
"""Metadata of a node that reads a tensor of ours: the names of the user's own tensors that it was computed from."""


def own_tensors(node: fx.Node) -> tuple[str, ...]:
    """The user's own parameters and buffers that a node which reads a tensor stands for: itself, or those it was computed from."""
    found: tuple[str, ...] = node.meta.get(STANDS_FOR, (str(node.target),))
    return found


def describe_tensor(node: fx.Node) -> str:
    """The name of the tensor that a node reads; behind one that is not the user's own, what it stands for."""
    name, own = str(node.target), own_tensors(node)
    if own == (name,):
        return name
    line = source_line(node)
    constant = f"a constant of {line}" if line else "a constant"
    return f"{name} (from {', '.join(own)})" if own else f"{name} ({constant})"


def add_parameter(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    """Set a parameter (or a buffer) under a name, and return a new node that reads it at the insertion point."""
    set_attribute(graph, name, value)
    node = graph.graph.get_attr(name)
    node.meta["val"] = fake_mode(graph).from_tensor(value, static_shapes=True)
    return node


def move_uses(graph: fx.GraphModule, node: fx.Node, to: fx.Node) -> None:
    """Replace all uses of `node` by `to`, and erase `node`."""
    node.replace_all_uses_with(to)
    graph.graph.erase_node(node)
