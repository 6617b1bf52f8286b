"""Fold weights: a weight that is computed from parameters alone, in a way that hinders its dims, becomes a parameter of its own.

    w ─ norm ─┐                                w' = w / norm(w)
    w ────── div ─ linear(x, ·)     becomes    linear(x, w')

In evaluation weight norm, spectral norm, BitNet's rounding and DoRA's scale are constants, but a statistic of weights ties or spoils
the dims that it runs over. What only scales or moves a weight (`1 + weight`, a transpose) stays as it is, for checkpoints know its name.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.frontend.canonicalization.weight_computations import WeightComputations, weight_computations
from fxprune.ir import Program, add_parameter, bind, copy_graph, rebuild, storage_key
from fxprune.ir.naming import free_name
from fxprune.rewrite import remove_dead
from fxprune.rules import traits_of

FOLDED = "folded"
"""The key of a node's metadata under which a folded weight has the names of the parameters that it was computed from."""

_PARAMETRIZED = re.compile(r"(.*?)\.?parametrizations\.(\w+)\.")
"""The name that torch.nn.utils.parametrize gives to a tensor from which the attribute `\\2` of the module `\\1` is computed."""


def fold_weights(program: Program) -> Program:
    """Return the program with its computed weights folded; the same program where it has none, or would become larger in bytes."""
    if not weight_computations(program).weights():
        return program
    folded = rebuild(program, copy_graph(program), {})
    _merge_equal(weight_computations(folded))
    remove_dead(folded.graph_module)
    found = weight_computations(folded)
    values = list(dict.fromkeys(_stored(found, value) for value in found.weights()))
    groups = [group for group in _groups(found, values) if _saved_bytes(found, group) >= 0]
    for value in [value for group in groups for value in group]:
        _store(found, value)
    remove_dead(folded.graph_module)
    folded.graph.lint()
    folded.graph_module.recompile()
    return folded if groups else program


def folded_sources(program: Program) -> dict[str, tuple[str, ...]]:
    """Return the names of the parameters that each folded weight was computed from, by its name."""
    reads = program.graph.find_nodes(op="get_attr")
    return {str(node.target): node.meta[FOLDED] for node in reads if FOLDED in node.meta}


def folded_notes(program: Program) -> tuple[str, ...]:
    """Return a note on the weights that were folded; none where there are none."""
    found = folded_sources(program)
    if not found:
        return ()
    name, sources = next(iter(found.items()))
    more = f", and {len(found) - 1} more weights are such" if len(found) > 1 else ""
    said = f"{name} is computed from {', '.join(sources)} alone{more}: folded into parameters"
    return (f"{said}; capture(…, training=True) keeps the computation",)


def _merge_equal(found: WeightComputations) -> None:
    """Let readers of hindered values that are computed alike (a layer that is called twice) read the first."""
    first: dict[Any, fx.Node] = {}
    taken: dict[fx.Node, fx.Node] = {}
    for node in list(found.graph.graph.nodes):
        if node not in found.constant:
            continue
        same = first.setdefault(_key(found, node, taken), node)
        if same is not node:
            taken[node] = same
            if node in found.hindered:
                node.replace_all_uses_with(same)


def _key(found: WeightComputations, node: fx.Node, taken: dict[fx.Node, fx.Node]) -> Any:
    """Return what a constant is computed from and how: equal for equal ones."""
    if node.op == "get_attr":
        return storage_key(found.tensor(node))
    given = fx.map_arg((node.args, node.kwargs), lambda source: taken.get(source, source))
    return node.target, repr(given)


def _stored(found: WeightComputations, value: fx.Node) -> fx.Node:
    """Return what to store of a value: what several readers move, or a movement copies, is stored before the movements."""
    stored, node = value, _moved(value)
    while node is not None and node in found.hindered:
        if found.is_weight(node) and (len(node.users) > 1 or _bytes(node) < _bytes(stored)):
            stored = node
        node = _moved(node)
    return stored


def _moved(node: fx.Node) -> fx.Node | None:
    """Return the only operand of a movement; None for any other node."""
    is_movement = traits_of(node.target).moves or node.target is operator.getitem
    sources = node.all_input_nodes
    return sources[0] if is_movement and len(sources) == 1 else None


def _bytes(node: fx.Node) -> int:
    value: Tensor = node.meta["val"]
    return int(value.numel()) * value.element_size()


def _groups(found: WeightComputations, values: list[fx.Node]) -> list[list[fx.Node]]:
    """Return the values in groups that share no parameter."""
    groups: list[tuple[set[Any], list[fx.Node]]] = []
    for value in values:
        sources = {storage_key(found.tensor(source)) for source in found.sources(value)}
        shared = [group for group in groups if not group[0].isdisjoint(sources)]
        groups = [group for group in groups if group[0].isdisjoint(sources)]
        joined = [other for _, members in shared for other in members]
        groups.append((sources.union(*(keys for keys, _ in shared)), [*joined, value]))
    return [members for _, members in groups]


def _saved_bytes(found: WeightComputations, values: Collection[fx.Node]) -> int:
    """Return how many bytes the program loses when values become parameters (below 0: it becomes larger)."""
    gone = set[fx.Node]()
    for node in reversed(found.cone(values)):
        if node in values or all(user in gone for user in node.users):
            gone.add(node)
    keys = {storage_key(found.tensor(node)) for node in gone if node.op == "get_attr"}
    unread = [nodes[0] for key in keys if gone.issuperset(nodes := found.readers[key])]
    return sum(map(_bytes, unread)) - sum(map(_bytes, values))


def _store(found: WeightComputations, value: fx.Node) -> None:
    """Put a parameter in the place of a value."""
    graph, sources = found.graph, found.sources(value)
    learned = any(found.tensor(source).requires_grad for source in sources)
    name, result = _name(found, value, sources), nn.Parameter(_compute(found, value), learned)
    with graph.graph.inserting_before(value):
        stored = add_parameter(graph, name, result)
    kept = ("stack_trace", "nn_module_stack")
    stored.meta |= {key: value.meta[key] for key in kept if key in value.meta}
    stored.meta[FOLDED] = tuple(dict.fromkeys(str(source.target) for source in sources))
    value.replace_all_uses_with(stored)


def _compute(found: WeightComputations, value: fx.Node) -> Tensor:
    """Return a constant's value in memory of its own; on the meta device, a tensor of its shape."""
    cone, values = found.cone([value]), dict[fx.Node, Any]()
    tensors = {node: found.tensor(node).detach() for node in cone if node.op == "get_attr"}
    if any(tensor.is_meta for tensor in tensors.values()):
        like = value.meta["val"]
        return torch.empty(tuple(like.shape), dtype=like.dtype, device="meta")
    with torch.no_grad():
        for node in cone:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: values[source])
            values[node] = tensors[node] if node in tensors else node.target(*args, **kwargs)  # type: ignore[operator]
        result: Tensor = values[value].clone(memory_format=torch.contiguous_format)
    return result


def _name(found: WeightComputations, value: fx.Node, sources: list[fx.Node]) -> str:
    """Return a free name: the attribute that a module computes, as far as the names of sources and readers tell, else after a source."""
    taken = {str(node.target) for node in found.graph.graph.find_nodes(op="get_attr")}
    largest = max(sources, key=_bytes)
    wanted = [*_attributes(sources), *_operand_names(found, value), f"{largest.target}_folded"]
    free = next((name for name in wanted if name not in taken), wanted[-1])
    return free_name(free, taken)


def _attributes(sources: list[fx.Node]) -> list[str]:
    """Return the attribute that torch.nn.utils.parametrize computes from all these parameters, where there is one."""
    matches = [_PARAMETRIZED.match(str(node.target)) for node in sources]
    names = {".".join(filter(None, match.groups())) if match else "" for match in matches}
    return [name for name in names if name and len(names) == 1]


def _operand_names(found: WeightComputations, value: fx.Node) -> Iterator[str]:
    """Yield names after the operand that a value is: `up.weight`, `up.folded_weight` where it is the weight of a product in `up`."""
    for user in (user for user in value.users if user not in found.constant):
        stack = list((user.meta.get("nn_module_stack") or {}).values())
        for operand, argument in bind(user).items():
            if stack and argument.value is value and operand in ("weight", "bias"):
                path = str(stack[-1][0])
                yield from (".".join(filter(None, (path, name))) for name in (operand, f"folded_{operand}"))
