"""Call signature of a Program: its input and output pytrees, with other examples or without some of their leaves.

A cache of keys and values is an input and an output at once: a list with an entry per layer. Where a layer is removed, its entry is
removed from the list, whatever classes the tree is made of.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.errors import SelectionError
from fxprune.ir.program import Program, flatten_inputs, trees


def with_inputs(program: Program, values: Mapping[str, Tensor]) -> Program:
    """The program with other example inputs, by the names of its placeholders."""
    args, kwargs = put_inputs(program, values)
    return program.replace(args=args, kwargs=kwargs)


def put_inputs(program: Program, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of the example inputs, some replaced by the names of their placeholders."""
    leaves, spec = pytree.tree_flatten((tuple(program.args), dict(program.kwargs)))
    for node, place in zip(program.placeholders(), _places(program, spec), strict=True):
        leaves[place] = values.get(node.name, leaves[place])
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs


def owners(program: Program) -> dict[str, str]:
    """The argument that each placeholder belongs to, by the placeholder's name."""
    info = trees(program.graph_module)
    pairs = zip(info.orig_args, _argument_specs(info.in_spec), strict=True)
    names = [name for name, spec in pairs for _ in range(spec.num_leaves)]
    return dict(zip([node.name for node in program.placeholders()], names, strict=True))


def required_outputs(program: Program, results: Sequence[Any]) -> list[Any]:
    """The required ones among the flat results of a run: all but those that may be removed with the layer that makes them."""
    spare = program.spare_outputs()
    return [value for value, node in zip(results, program.outputs(), strict=True) if node not in spare]


def without(program: Program, inputs: Collection[str], outputs: Collection[str]) -> Program:
    """Remove inputs that nothing reads, and outputs, by name; SelectionError where one can't be removed from its tree.

    An entry of a list, a tuple or a dict is removed with the last of its leaves; fields of classes stay. The graph is edited in place.
    """
    if not inputs and not outputs:
        return program
    args, kwargs = _examples_without(program, inputs)
    names = [node.name for node in program.placeholders()]
    gone = {place for place, name in enumerate(names) if name in inputs}
    slim = program.replace(args=args, kwargs=kwargs, dynamic_shapes=_dynamic_without(program, gone))
    return _renamed(program.named_outputs(), _cut_trees(slim, (gone, names), set(outputs)))


def _cut_trees(program: Program, inputs: tuple[set[int], list[str]], outputs: set[str]) -> Program:
    """Remove inputs (by position) and outputs (by name) from the graph and its trees, in place."""
    info, graph, (gone, names) = trees(program.graph_module), program.graph_module, inputs
    labels = {node: name for name, node in program.named_outputs().items() if name in outputs}
    results = program.outputs()
    lost = {place for place, result in enumerate(results) if result in labels}
    numbers = {place for place, result in enumerate(results) if _is_number(result)}
    in_spec, left = _spec_without(info.in_spec, gone, names, call=True)
    called = [labels.get(result, "") for result in results]
    out_spec, given = _spec_without(info.out_spec, lost, called, loose=numbers)
    kept = [name for name in info.orig_args if name in _arguments(in_spec, info.orig_args)]
    for node in [node for place, node in enumerate(program.placeholders()) if place not in left]:
        graph.graph.erase_node(node)
    graph.graph.output_node().args = (tuple(results[place] for place in given),)
    codegen: Any = copy.copy(graph.graph._codegen)
    codegen.pytree_info = info._replace(orig_args=kept, in_spec=in_spec, out_spec=out_spec)
    graph.graph.set_codegen(codegen)
    graph.recompile()
    return program


def _renamed(before: Mapping[str, fx.Node], program: Program) -> Program:
    """The program with `free_outputs` and `spare` under the outputs' new names: entries of a list are renumbered."""
    named = program.named_outputs()
    now: dict[str, frozenset[str]] = {}
    for name in ("free_outputs", "spare"):
        marked: frozenset[str] = getattr(program, name)
        nodes = {node for old, node in before.items() if old in marked}
        others = {each for each in marked if each not in before}
        now[name] = frozenset(others | {new for new, node in named.items() if node in nodes})
    return program.replace(**now)


def _places(program: Program, spec: Any) -> list[int]:
    """The position of each placeholder's leaf among the leaves of (args, kwargs)."""
    marked = pytree.tree_unflatten(_marks(spec.num_leaves), spec)
    return [int(mark) for mark in flatten_inputs(program, *marked)]


def _marks(count: int) -> list[Any]:
    """Leaves that hold their own positions; as tensors, since a cache accepts no other leaves."""
    return [torch.tensor(place) for place in range(count)]


def _examples_without(program: Program, inputs: Collection[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves, spec = pytree.tree_flatten((tuple(program.args), dict(program.kwargs)))
    places = _places(program, spec)
    names = {place: node.name for node, place in zip(program.placeholders(), places, strict=True)}
    gone = {place for place, name in names.items() if name in inputs}
    slim, left = _spec_without(spec, gone, [names.get(place, "") for place in range(len(leaves))], call=True)
    args, kwargs = pytree.tree_unflatten([leaves[place] for place in left], slim)
    return args, kwargs


def _dynamic_without(program: Program, gone: set[int]) -> Any:
    """The dynamic shapes, keyed by the names of arguments, without those of some inputs."""
    info, dynamic = trees(program.graph_module), program.dynamic_shapes
    if not gone or not isinstance(dynamic, Mapping):
        return dynamic
    found, first = {}, 0
    for name, spec in zip(info.orig_args, _argument_specs(info.in_spec), strict=True):
        mine = {place - first for place in gone if first <= place < first + spec.num_leaves}
        first += spec.num_leaves
        if name in dynamic and not (mine and len(mine) == spec.num_leaves):
            slim, left = _spec_without(spec, mine, [""] * spec.num_leaves)
            leaves = shape_leaves(spec, dynamic[name]) if mine else []
            found[name] = shape_tree(slim, [leaves[place] for place in left]) if mine else dynamic[name]
    return found


def shape_tree(spec: Any, leaves: Sequence[Any]) -> Any:
    """Dynamic shapes in torch.export's form: built-in containers as they are, a class as the list of its children."""
    if spec.is_leaf():
        return leaves[0]
    parts, first = [], 0
    for child in spec.children():
        parts.append(shape_tree(child, leaves[first : first + child.num_leaves]))
        first += child.num_leaves
    if spec.type is dict:
        return dict(zip(spec.context, parts, strict=True))
    return tuple(parts) if spec.type is tuple else parts


def shape_leaves(spec: Any, shapes: Any) -> list[Any]:
    """The entries of dynamic shapes, one per leaf; None may stand for a whole container."""
    if spec.is_leaf():
        return [shapes]
    children = spec.children()
    keyed = spec.type is dict and isinstance(shapes, Mapping)
    parts = [shapes.get(key) for key in spec.context] if keyed else shapes
    parts = parts.values() if isinstance(parts, Mapping) else parts
    pairs = zip(children, [None] * len(children) if shapes is None else parts, strict=True)
    return [leaf for child, part in pairs for leaf in shape_leaves(child, part)]


def _argument_specs(in_spec: Any) -> list[Any]:
    args, kwargs = in_spec.children()
    return [*args.children(), *kwargs.children()]


def _is_number(result: Any) -> bool:
    """Whether a result is no tensor, or a tensor without dims."""
    value = result.meta.get("val") if isinstance(result, fx.Node) else None
    return not isinstance(value, Tensor) or value.dim() == 0


def _arguments(in_spec: Any, names: list[str]) -> set[str]:
    """The names of the remaining arguments: all positional ones, and the keywords of the spec."""
    args, kwargs = in_spec.children()
    return {*names[: args.num_children], *kwargs.context}


def _spec_without(
    spec: Any, gone: set[int], names: list[str], loose: Collection[int] = (), call: bool = False
) -> tuple[Any, list[int]]:
    """(the spec of a tree without some of its leaves, the positions of the remaining leaves); SelectionError where a leaf can't be removed.

    Of a `call` (args, kwargs), both parts and all positional arguments stay. `loose` leaves (the length of a cache) do not keep an entry.
    """
    if not gone:
        return spec, list(range(spec.num_leaves))
    tree: Any = pytree.tree_unflatten(_marks(spec.num_leaves), spec)
    going = (gone, gone | set(loose))
    slim = (
        (tuple(_pruned(each, going) for each in tree[0]), _pruned(tree[1], going))
        if call
        else _pruned(tree, going)
    )
    leaves, found = pytree.tree_flatten(slim)
    left = [int(mark) for mark in leaves]
    stuck = [names[place] for place in left if place in gone]
    if stuck:
        raise SelectionError(
            f"{stuck[0]} can't go alone: only entries of lists and dicts can, and it is none"
        )
    return found, left


Removal: TypeAlias = tuple[set[int], set[int]]
"""(the leaves to remove, these and the loose leaves)."""


def _pruned(value: Any, going: Removal) -> Any:
    """A tree without those entries of lists, tuples and dicts whose leaves are removed; objects are changed in place."""
    if type(value) in (list, tuple):
        return type(value)(_pruned(part, going) for part in value if not _all_gone(part, going))
    if type(value) is dict:
        return {key: _pruned(part, going) for key, part in value.items() if not _all_gone(part, going)}
    for key, part in _fields(value).items():
        _fields(value)[key] = _pruned(part, going)
    return value


def _all_gone(value: Any, going: Removal) -> bool:
    marks = set(_marked(value))
    return bool(marks & going[0]) and marks <= going[1]


def _marked(value: Any) -> list[int]:
    """The positions of the leaves in a part of a tree."""
    if isinstance(value, Tensor):
        return [int(value)]
    parts = value if isinstance(value, (list, tuple)) else _fields(value).values()
    return [mark for part in parts for mark in _marked(part)]


def _fields(value: Any) -> Any:
    """The items of a mapping, or the attributes of an object, by name."""
    return value if isinstance(value, dict) else getattr(value, "__dict__", {})
