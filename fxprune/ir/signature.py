"""Inputs and outputs as trees: other examples in the place of some, and trees without some of their leaves.

A cache of keys and values is an input and an output at once: a list with an entry a layer. Where a layer goes, its entry goes from the
list, whatever classes the tree is made of.
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
    """The example inputs, args and kwargs, with others in the place of some, by the names of placeholders."""
    leaves, spec = pytree.tree_flatten((tuple(program.args), dict(program.kwargs)))
    for node, place in zip(program.placeholders(), _places(program, spec), strict=True):
        leaves[place] = values.get(node.name, leaves[place])
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs


def owners(program: Program) -> dict[str, str]:
    """The argument that each placeholder belongs to, by its name."""
    info = trees(program.graph)
    pairs = zip(info.orig_args, _argument_specs(info.in_spec), strict=True)
    names = [name for name, spec in pairs for _ in range(spec.num_leaves)]
    return dict(zip([node.name for node in program.placeholders()], names, strict=True))


def needed(program: Program, results: Sequence[Any]) -> list[Any]:
    """Of the flat results of a run those that have to be there: not what goes with the layer that makes it."""
    spare = program.spare_outputs()
    return [value for value, node in zip(results, program.outputs(), strict=True) if node not in spare]


def without(program: Program, inputs: Collection[str], outputs: Collection[str]) -> Program:
    """The program without inputs that nothing reads and without outputs, by name; SelectionError where a tree can't be without one.

    An entry of a list, a tuple or a dict goes when all that it holds goes; fields of classes stay.
    """
    if not inputs and not outputs:
        return program
    args, kwargs = _examples_without(program, inputs)
    names = [node.name for node in program.placeholders()]
    gone = {place for place, name in enumerate(names) if name in inputs}
    slim = program.replace(args=args, kwargs=kwargs, dynamic=_dynamic_without(program, gone))
    return _renamed(program.named_outputs(), _cut_trees(slim, (gone, names), set(outputs)))


def _cut_trees(program: Program, inputs: tuple[set[int], list[str]], outputs: set[str]) -> Program:
    """Take places of inputs, and outputs by name, out of the graph and its trees."""
    info, graph, (gone, names) = trees(program.graph), program.graph, inputs
    labels = {node: name for name, node in program.named_outputs().items() if name in outputs}
    results = program.outputs()
    lost = {place for place, result in enumerate(results) if result in labels}
    numbers = {place for place, result in enumerate(results) if _is_number(result)}
    in_spec, left = _spec_without(info.in_spec, gone, names, call=True)
    out_spec, given = _spec_without(
        info.out_spec, lost, [labels.get(result, "") for result in results], loose=numbers
    )
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
    """The same outputs may shrink and go, by the names that they have now: entries of a list are counted anew."""
    named = program.named_outputs()
    now: dict[str, frozenset[str]] = {}
    for name in ("free_outputs", "spare"):
        marked: frozenset[str] = getattr(program, name)
        nodes = {node for old, node in before.items() if old in marked}
        others = {each for each in marked if each not in before}
        now[name] = frozenset(others | {new for new, node in named.items() if node in nodes})
    return program.replace(**now)


def _places(program: Program, spec: Any) -> list[int]:
    """Where the leaf of each placeholder stands among the leaves of (args, kwargs)."""
    marked = pytree.tree_unflatten(_marks(spec.num_leaves), spec)
    return [int(mark) for mark in flatten_inputs(program, *marked)]


def _marks(count: int) -> list[Any]:
    """Leaves that say where they stand; tensors, for a cache takes nothing else for a leaf."""
    return [torch.tensor(place) for place in range(count)]


def _examples_without(program: Program, inputs: Collection[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves, spec = pytree.tree_flatten((tuple(program.args), dict(program.kwargs)))
    names = {
        place: node.name for node, place in zip(program.placeholders(), _places(program, spec), strict=True)
    }
    gone = {place for place, name in names.items() if name in inputs}
    slim, left = _spec_without(spec, gone, [names.get(place, "") for place in range(len(leaves))], call=True)
    args, kwargs = pytree.tree_unflatten([leaves[place] for place in left], slim)
    return args, kwargs


def _dynamic_without(program: Program, gone: set[int]) -> Any:
    """Dynamic shapes, keyed by the names of arguments, without some inputs."""
    info, dynamic = trees(program.graph), program.dynamic
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
    """Dynamic shapes in torch.export's form: built-in containers as they are, a class as the list of what it flattens to."""
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
    """The entries of dynamic shapes, a leaf each; None stands for a whole container."""
    if spec.is_leaf():
        return [shapes]
    children = spec.children()
    parts = shapes.values() if isinstance(shapes, Mapping) else shapes
    pairs = zip(children, [None] * len(children) if shapes is None else parts, strict=True)
    return [leaf for child, part in pairs for leaf in shape_leaves(child, part)]


def _argument_specs(in_spec: Any) -> list[Any]:
    args, kwargs = in_spec.children()
    return [*args.children(), *kwargs.children()]


def _is_number(result: Any) -> bool:
    """Whether a result is no tensor, or one without dims."""
    value = result.meta.get("val") if isinstance(result, fx.Node) else None
    return not isinstance(value, Tensor) or value.dim() == 0


def _arguments(in_spec: Any, names: list[str]) -> set[str]:
    """The arguments that are left: positional ones stay, keywords say so themselves."""
    args, kwargs = in_spec.children()
    return {*names[: args.num_children], *kwargs.context}


def _spec_without(
    spec: Any, gone: set[int], names: list[str], loose: Collection[int] = (), call: bool = False
) -> tuple[Any, list[int]]:
    """A tree without some of its leaves, and which are left; of a call (args, kwargs) both parts stay, and positional arguments do.

    `loose` leaves (the length of what a cache holds) keep no entry alive.
    """
    if not gone:
        return spec, list(range(spec.num_leaves))
    tree = pytree.tree_unflatten(_marks(spec.num_leaves), spec)
    going = (gone, gone | set(loose))
    args, kwargs = tree if call else ((), {})
    slim = (
        (tuple(_pruned(each, going) for each in args), _pruned(kwargs, going))
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


Going: TypeAlias = tuple[set[int], set[int]]
"""The leaves that go, and with them those that stay for nobody else's sake."""


def _pruned(value: Any, going: Going) -> Any:
    """A tree without the entries of lists, tuples and dicts all of whose leaves go; it may be changed in place."""
    if type(value) in (list, tuple):
        return type(value)(_pruned(part, going) for part in value if not _all_gone(part, going))
    if type(value) is dict:
        return {key: _pruned(part, going) for key, part in value.items() if not _all_gone(part, going)}
    for key, part in _fields(value).items():
        _fields(value)[key] = _pruned(part, going)
    return value


def _all_gone(value: Any, going: Going) -> bool:
    marks = set(_marked(value))
    return bool(marks & going[0]) and marks <= going[1]


def _marked(value: Any) -> list[int]:
    """The leaves beneath a part of a tree."""
    if isinstance(value, Tensor):
        return [int(value)]
    parts = value if isinstance(value, (list, tuple)) else _fields(value).values()
    return [mark for part in parts for mark in _marked(part)]


def _fields(value: Any) -> Any:
    """What a mapping or an object holds, by name."""
    return value if isinstance(value, dict) else getattr(value, "__dict__", {})
