"""Islands taken out of their Program, and put into the model that they lie in.

An island is a Program of its own; in the model it is called as its module was, under its module's path.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import networkx as nx
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxprune.ir import Program, attribute, rebuild, trees
from fxprune.ir.islands import Island
from fxprune.ir.naming import free_name
from fxprune.ir.program import checked, deep_copy
from fxprune.ir.train_mode import switchable

_INTERNAL = frozenset(vars(nn.Module())) | {"forward"}
_MISSING = object()


class IslandModule(nn.Module):
    """A captured module in its model's place: its graph, called as the module is, with the module's plain attributes and methods.

    Parameters, buffers and submodules are those of the graph, which itself is no submodule: so they keep their names.
    """

    def __init__(
        self, island: Island, graph: fx.GraphModule, kind: type[nn.Module], plain: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.__dict__.update(plain)
        self.__dict__.update(_island=island, _graph=graph, _kind=kind, _plain=dict(plain))
        for name in ("_parameters", "_buffers", "_modules"):
            self.__dict__[name] = getattr(graph, name)
        self.training = graph.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the graph; GuardError where it was not captured for such a call."""
        return self._graph(*self._island.tensors(args, kwargs))

    def train(self, mode: bool = True) -> IslandModule:
        """Switch the graph between training and evaluation."""
        super().train(mode)
        self._graph.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = inspect.getattr_static(self.__dict__.get("_kind", object), name, _MISSING)
            if found is _MISSING:
                raise
        return found.__get__(self, type(self)) if hasattr(found, "__get__") else found

    def __deepcopy__(self, memo: dict[int, Any]) -> IslandModule:
        graph = switchable(deep_copy(self._graph, memo))
        return IslandModule(self._island, graph, self._kind, copy.deepcopy(self._plain, memo))

    def __reduce__(self) -> Any:
        return _unpickled, (self._island, self._graph, self._kind, self._plain)


def _unpickled(
    island: Island, graph: fx.GraphModule, kind: type[nn.Module], plain: Mapping[str, Any]
) -> IslandModule:
    return IslandModule(island, switchable(graph), kind, plain)


def in_model(program: Program) -> nn.Module:
    """Return an independent nn.Module of a program: where it has islands, a copy of the model that they lie in, with them in place."""
    islands = program.islands
    if islands is None:
        return program.module()
    shared = program.replace(graph_module=deep_copy(program.graph_module))
    memo: dict[int, Any] = {}
    for path, island in islands.parts.items():
        original, part = islands.model.get_submodule(path), island_program(shared, path)
        graph = switchable(checked(part.graph_module, part))
        plain = {name: value for name, value in vars(original).items() if _is_plain(name, value)}
        memo[id(original)] = IslandModule(island, graph, type(original), plain).train(original.training)
    return copy.deepcopy(islands.model, memo)  # the copy has the islands wherever it had their modules


def _is_plain(name: str, value: Any) -> bool:
    """Return whether an attribute of a module is neither of torch nor holds tensors or modules."""
    leaves = pytree.tree_leaves(value)
    return name not in _INTERNAL and not any(isinstance(leaf, (Tensor, nn.Module)) for leaf in leaves)


def island_program(program: Program, path: str) -> Program:
    """Return one island as a Program of its own, whose arguments are the island's tensors; weights are shared, not copied."""
    assert program.islands is not None
    island, (results, spec) = program.islands.parts[path], island_results(program, path)
    graph, info = _cut_out(program, island, results), trees(program.graph_module)
    in_spec = pytree.tree_structure(((0,) * len(island.inputs), {}))
    graph.set_codegen(
        _PyTreeCodeGen(info._replace(orig_args=list(island.inputs), in_spec=in_spec, out_spec=spec))
    )
    names, dynamic = [node.name for node in program.placeholders()], program.dynamic_shapes
    examples = dict(zip(names, program.flat_inputs(), strict=True))
    shapes = (
        {}
        if dynamic is None
        else {name: dynamic[arg] for name, arg in zip(names, info.orig_args, strict=True)}
    )
    return rebuild(program, graph, _without_path(program, graph, path)).replace(
        args=tuple(examples[name] for name in island.inputs),
        kwargs={},
        dynamic_shapes={name: shapes[name] for name in island.inputs} if shapes else None,
        guards=tuple(guard for guard in program.guards if guard.names <= set(island.inputs)),
        notes=(),
        labels={},
        islands=None,
    )


def _without_path(program: Program, graph: fx.Graph, path: str) -> dict[str, Tensor]:
    """Name the weights of an island as its module does, in place; return them by these names. A weight of another module keeps its name."""
    found: dict[str, Tensor] = {}
    taken: dict[str, str] = {}
    for node in graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if name not in taken:
            taken[name] = free_name(name.removeprefix(f"{path}."), found)
            found[taken[name]] = attribute(program.graph_module, name)
        node.target = taken[name]
    return found


def island_results(program: Program, path: str) -> tuple[list[Any], pytree.TreeSpec]:
    """Return what the graph returns for an island, and its tree."""
    spec = trees(program.graph_module).out_spec
    first, flat = 0, program.outputs()
    for name, child in zip(spec.context, spec.children(), strict=True):
        if name == path:
            return flat[first : first + child.num_leaves], child
        first += child.num_leaves
    raise KeyError(path)


def _cut_out(program: Program, island: Island, results: list[Any]) -> fx.Graph:
    """Return the part of the graph that an island's inputs and results are connected with."""
    own = connected_nodes(program, island, results)
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    placeholders = [node for node in program.placeholders() if node.name in island.inputs]
    rest = [node for node in program.graph.nodes if node in own and node.op != "placeholder"]
    for node in [*sorted(placeholders, key=lambda each: island.inputs.index(each.name)), *rest]:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[each] if isinstance(each, fx.Node) else each for each in results))
    return graph


def connected_nodes(program: Program, island: Island, results: list[Any]) -> set[fx.Node]:
    """Return the nodes that are connected with an island's inputs or results, and the weights that they read."""
    web: nx.Graph[fx.Node] = nx.Graph()
    computed = [node for node in program.graph.nodes if node.op not in ("get_attr", "output")]
    web.add_nodes_from(computed)
    web.add_edges_from(
        (one, node) for node in computed for one in node.all_input_nodes if one.op != "get_attr"
    )
    ends = [node for node in program.placeholders() if node.name in island.inputs]
    ends += [each for each in results if isinstance(each, fx.Node) and each in web]
    found: set[fx.Node] = set()
    for end in ends:
        found |= set() if end in found else nx.node_connected_component(web, end)
    read = {one for node in found for one in node.all_input_nodes if one.op == "get_attr"}
    return found | read | {each for each in results if isinstance(each, fx.Node)}
