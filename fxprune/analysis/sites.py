"""Sites: the axes that are decided together, and the part of the graph whose cost depends on them, as a small program of its own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxprune.analysis.axes import Analysis, Axis
from fxprune.analysis.dim_inference import flat_dims
from fxprune.dims.dim import Dim, leaves
from fxprune.errors import UsageError
from fxprune.frontend.capture import capture, describe_error
from fxprune.ir.example_inputs import Point, call_inputs
from fxprune.ir.program import Program, attribute, flatten_inputs, set_attribute
from fxprune.rules.op import operands

Config: TypeAlias = tuple[tuple[str, int], ...]
"""How many units of each of some axes stay, by name."""

# It prints a trace of what fails; the reason is in the exception too.
_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")

#: roles that are decided without being asked for
DECIDED = frozenset({"heads", "qk", "v", "ffn", "channels", "rank"})


@dataclass(frozen=True, eq=False)
class Site:
    """An axis, the axes within each of whose units a choice may differ (qk and v of heads), and the nodes that carry any of them.

    `branch` is the residual branch that holds this site and no other, "" where there is none.
    """

    main: Axis
    inner: tuple[Axis, ...]
    nodes: frozenset[str]
    branch: str = ""

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (self.main, *self.inner)


def find_sites(analysis: Analysis, hidden: bool = False) -> tuple[Site, ...]:
    """What can be decided, in the order of the axes: exact axes of the roles DECIDED, and, if asked, the width of residual streams."""
    roles = DECIDED | ({"hidden"} if hidden else set())
    axes = [axis for axis in analysis.axes if axis.role in roles and (axis.exact or axis.role == "hidden")]
    heads = {axis.name for axis in outermost([axis for axis in axes if axis.role == "heads"])}
    axes = [axis for axis in axes if axis.role != "heads" or axis.name in heads]
    owner = {axis.name: _owner(analysis, axis, heads) for axis in axes if axis.role in ("qk", "v")}
    by_leaf = carriers(analysis)
    found = []
    for main in axes:
        if not owner.get(main.name):
            inner = tuple(axis for axis in axes if owner.get(axis.name) == main.name)
            nodes = frozenset().union(*(by_leaf.get(axis.leaf, set()) for axis in (main, *inner)))
            found.append(Site(main, inner, nodes))
    return _with_branches(analysis, found)


def _owner(analysis: Analysis, axis: Axis, heads: set[str]) -> str:
    """The heads for each of which an axis may keep other indices."""
    return next((name for name in analysis.within(axis.name) if name in heads), "")


def carriers(analysis: Analysis) -> dict[Dim, set[str]]:
    """The nodes that compute with each atom: it is in their value or in an operand."""
    found: dict[Dim, set[str]] = {}
    for node in analysis.program.graph.graph.nodes:
        if node.op == "call_function":
            dims = [d for n in (node, *operands(node)) for d in flat_dims(analysis.flow.dims.get(n, ()))]
            for leaf in dict.fromkeys(leaf for dim in dims for leaf in leaves(dim)):
                found.setdefault(leaf, set()).add(node.name)
    return found


def _with_branches(analysis: Analysis, found: list[Site]) -> tuple[Site, ...]:
    branches = [region for region in analysis.regions if region.unit == "branch" and not region.why]
    named: dict[str, str] = {}
    for region in branches:
        inside = [site.main.name for site in found if site.nodes <= region.nodes]
        touched = [
            site.main.name for site in found if site.nodes & region.nodes and site.main.role != "hidden"
        ]
        if len(inside) == 1 and touched == inside:
            named[inside[0]] = region.name
    return tuple(Site(s.main, s.inner, s.nodes, named.get(s.main.name, "")) for s in found)


def outermost(axes: list[Axis]) -> list[Axis]:
    """Of head axes that multiply in one tensor (groups × queries per group) the one with the most members: cut once, not twice."""
    chosen: list[Axis] = []
    for axis in sorted(axes, key=lambda axis: -len(axis.members)):
        places = {(member.name, member.dim) for member in axis.members}
        if not any(
            places & {(m.name, m.dim) for m in other.members} and _multiply(axis, other) for other in chosen
        ):
            chosen.append(axis)
    return chosen


def _multiply(one: Axis, other: Axis) -> bool:
    """Whether a position of some tensor belongs to a unit of both axes (segments of a fused weight may hold one each)."""
    shared = {(m.name, m.dim): m for m in one.members}
    pairs = [(shared[(m.name, m.dim)], m) for m in other.members if (m.name, m.dim) in shared]
    return any(set(a.indices(0)) & set(b.indices(0)) for a, b in pairs)


@dataclass(frozen=True, eq=False)
class Part:
    """Some nodes of a program at fixed sizes, as a graph of their own, with made-up inputs.

    `signature` is equal for parts that compute the same with other weights.
    """

    graph: fx.GraphModule
    inputs: tuple[Tensor, ...]
    signature: str

    def program(self) -> Program:
        """The part as a program."""
        return capture(self.graph, self.inputs)


def part(program: Program, names: frozenset[str], values: Values) -> Part:
    """The named nodes: inputs are what they read from elsewhere, outputs what is read elsewhere."""
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
    """The named nodes that give a tensor; where one of several tensors is named (a split), all of them."""
    several = {
        n
        for n in program.graph.graph.nodes
        if isinstance(values.get(n), (tuple, list))
        and not names.isdisjoint({n.name, *(u.name for u in n.users)})
    }
    return [
        n
        for n in program.graph.graph.nodes
        if (n.name in names and isinstance(values.get(n), Tensor))
        or n in several
        or not several.isdisjoint(n.all_input_nodes)
    ]


def _source(
    program: Program, graph: fx.Graph, root: nn.Module, node: fx.Node, value: Any, inputs: list[Tensor]
) -> Any:
    """What stands for a value from elsewhere: its number, its weight, or an input of its size."""
    if not isinstance(value, Tensor):
        return value
    if node.op == "get_attr":
        set_attribute(root, str(node.target), attribute(program.graph, str(node.target)))
        return graph.get_attr(str(node.target))
    inputs.append(_made_up(value, len(inputs)))
    return graph.placeholder(f"input_{len(inputs) - 1}")


def _made_up(like: Tensor, seed: int) -> Tensor:
    """Values of a size and type: normal floats, ones elsewhere (a mask that lets everything through)."""
    if like.is_floating_point():
        random = torch.Generator().manual_seed(seed)
        return torch.randn(tuple(like.shape), generator=random, dtype=torch.float32).to(like.dtype)
    return torch.ones(tuple(like.shape), dtype=like.dtype)


def _placeholders_first(graph: fx.Graph) -> fx.Graph:
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in list(graph.find_nodes(op="placeholder")):
        first.prepend(node)
    return graph


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what is known of every value; on fake tensors, so nothing is computed."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = value
        return value


Values: TypeAlias = Mapping[fx.Node, Any]
"""What is known of every value at a point: a fake tensor, or a number."""


def values_at(program: Program, point: Point | None) -> Values:
    """Every value of a program at a point (None: the example inputs); UsageError where it can't run there."""
    flat, spec = pytree.tree_flatten(call_inputs(program, point))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        fake = [mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in flat]
        args, kwargs = pytree.tree_unflatten(fake, spec)
        recorder, level = _Recorder(program.graph), _FAKE_LOG.level
        _FAKE_LOG.setLevel(logging.CRITICAL)
        try:
            recorder.run(*flatten_inputs(program, args, kwargs), enable_io_processing=False)
        except Exception as error:
            where = (
                ", ".join(f"{axis}={size}" for axis, size in (point or {}).items()) or "its example inputs"
            )
            raise UsageError(f"the program can't run at {where}: {describe_error(error)}") from error
        finally:
            _FAKE_LOG.setLevel(level)
    return recorder.values


def _signature(graph: fx.Graph, values: Values) -> str:
    """Operators, sizes and literals, hashed."""
    names = {node: str(i) for i, node in enumerate(graph.nodes)}
    lines: list[str] = []
    for node in graph.nodes:
        value = values.get(node)
        shape = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else ""
        target = str(node.target) if node.op == "call_function" else ""
        args = fx.map_arg((node.args, dict(node.kwargs)), lambda n: f"%{names[n]}")
        lines.append(f"{node.op} {target} {args} {shape}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
