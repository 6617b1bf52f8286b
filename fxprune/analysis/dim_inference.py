"""Dim inference: one walk over a program that collects the dims of every value, and the facts that rules establish about dims."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from fxprune.dims import Dim, atom
from fxprune.dims.dim import pin
from fxprune.dims.unify import unify
from fxprune.errors import RuleError
from fxprune.ir import Program, attribute, hint, is_free, operands, shape_of, storage_key
from fxprune.rules import REFUSED, Flow, Op, find_rule, packet_of
from fxprune.rules.addends import addends
from fxprune.rules.facts import Shape
from fxprune.rules.routing import routing


def walk(program: Program) -> Flow:
    """Infer the dims of every value of a program."""
    flow = Flow()
    storages: dict[Any, Shape] = {}
    nodes = list(program.graph.nodes)
    _mark_varying(flow, nodes)
    for node in nodes:
        _visit(program, node, flow, storages)
    _join_candidates(flow)
    _pin_overlaps(program, flow)
    return flow


def replay(program: Program, order: Sequence[fx.Node]) -> Flow:
    """Infer the same facts in another order of nodes: every value has its dims beforehand, and rules only unify them.

    The order must not matter; tests shuffle it and compare the axes.
    """
    flow = Flow()
    storages: dict[Any, Shape] = {}
    _mark_varying(flow, list(program.graph.nodes))
    for node in program.graph.nodes:
        if not _no_tensor(node.meta.get("val")):
            flow.dims[node] = _free_dims(node.meta["val"])
    for node in order:
        before = flow.dims.get(node)
        _visit(program, node, flow, storages)
        for one, other in zip(flat_dims(before or ()), flat_dims(flow.dims.get(node, ())), strict=True):
            unify(one, other, node.name)
    _join_candidates(flow)
    _pin_overlaps(program, flow)
    return flow


def _free_dims(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_free_dims(item) for item in value)
    return tuple(atom(size) for size in shape_of(value) or ())


def _mark_varying(flow: Flow, nodes: list[fx.Node]) -> None:
    for node in nodes:
        if any(source in flow.varies for source in operands(node)) or node.op == "placeholder":
            flow.varies.add(node)
    flow.routing = routing(nodes, flow.varies)
    flow.addends = addends(nodes, flow.varies)


def _visit(program: Program, node: fx.Node, flow: Flow, storages: dict[Any, Shape]) -> None:
    if node.op == "placeholder":
        free = node.name in program.free_inputs
        flow.dims[node] = _pinned_dims(node.meta.get("val"), node, "an input of the graph", free)
    elif node.op == "get_attr":
        value = attribute(program.graph_module, str(node.target))
        if isinstance(value, Tensor):
            flow.dims[node] = storages.setdefault(storage_key(value), tuple(map(atom, value.shape)))
    elif node.op == "output":
        for name, result in program.named_outputs().items():
            if name not in program.free_outputs:
                _pin_value(flow, result, "an output of the graph", node)
    else:
        _call(node, flow)


def _call(node: fx.Node, flow: Flow) -> None:
    if node.target is operator.getitem:
        source: Any = node.args[0]
        if source in flow.dims:
            flow.dims[node] = flow.dims[source][node.args[1]]
        return
    if _no_tensor(node.meta.get("val")):
        return
    found = find_rule(node.target)
    if found is None:
        _unknown(node, flow, REFUSED.get(packet_of(node.target)) or f"no rule for {node.target}")
        return
    op = Op(node, flow)
    try:
        flow.dims[node] = _checked(node, found.function(op))
    except Exception as error:  # noqa: BLE001 - a rule that fails is a refusal, never a crash
        _unknown(node, flow, f"the rule of {node.target} failed: {type(error).__name__}: {error}")


def _no_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_no_tensor(item) for item in value)
    return not isinstance(value, Tensor)


def _checked(node: fx.Node, result: Any) -> Any:
    """Return a rule's result; RuleError where its sizes are not those that torch gives."""
    many = isinstance(node.meta["val"], (tuple, list))
    said = tuple(tuple(d.size for d in s) for s in result) if many else tuple(d.size for d in result)
    if said != sizes_of(node.meta["val"]):
        raise RuleError(f"it says {said}, torch says {sizes_of(node.meta['val'])}")
    return tuple(result)


def sizes_of(value: Any) -> Any:
    """Return the sizes of a node's value as numbers, nested for several values."""
    if isinstance(value, (tuple, list)):
        return tuple(sizes_of(item) for item in value)
    return shape_of(value) or ()


def _pinned_dims(value: Any, node: fx.Node, why: str, free: bool = False) -> Any:
    """Return pinned dims for a node's value; with `free`, only symbolic sizes, which the caller varies, are pinned."""
    if isinstance(value, (tuple, list)):
        # histogramdd: a tensor and a list of tensors
        return tuple(_pinned_dims(item, node, why, free) for item in value)
    return _pin_shape(value, node, why, free)


def _pin_shape(value: Any, node: fx.Node, why: str, free: bool) -> Shape:
    if not isinstance(value, Tensor):
        return ()
    shape = tuple(Dim(hint(size)) for size in value.shape)
    for dim, size in zip(shape, value.shape, strict=True):
        if not free or is_free(size):
            pin(dim, why, node.name)
    return shape


def _pin_value(flow: Flow, node: fx.Node, why: str, at: fx.Node) -> None:
    for dim in flat_dims(flow.dims.get(node, ())):
        flow.pins.append((dim, at))
        pin(dim, why, at.name)


def flat_dims(shape: Any) -> list[Dim]:
    """Return all dims of a value, or of several."""
    return [shape] if isinstance(shape, Dim) else [dim for item in shape for dim in flat_dims(item)]


def _unknown(node: fx.Node, flow: Flow, why: str) -> None:
    """Record why an operator is unknown, and pin the dims of its operands and results."""
    flow.unknown[node] = why
    for source in operands(node):
        _pin_value(flow, source, why, node)
    flow.dims[node] = _pinned_dims(node.meta.get("val"), node, why)


def _join_candidates(flow: Flow) -> None:
    """Unify the dims of candidates whose numbers are concatenated; dims of different sizes are pinned first."""
    for one, other, node in flow.routing.same:
        dims = [flow.dims[each.value][each.place] for each in (one, other)]
        if dims[0].size != dims[1].size:
            for dim in dims:
                pin(dim, f"{node.target} joins numbers of different dims", node.name)
        unify(dims[0], dims[1], node.name)


def _pin_overlaps(program: Program, flow: Flow) -> None:
    """Pin the dims of tensors that are different views of one storage, which can't shrink apart."""
    seen: dict[int, tuple[Any, fx.Node]] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        value = attribute(program.graph_module, str(node.target))
        if not isinstance(value, Tensor) or value.device.type == "meta" or not value.numel():
            continue
        key, other = seen.setdefault(value.untyped_storage().data_ptr(), (storage_key(value), node))
        if key != storage_key(value):
            for each in (node, other):
                why = f"{node.target} and {other.target} are different views of one storage"
                _pin_value(flow, each, why, each)
