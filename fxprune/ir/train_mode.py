"""Train/eval mode of a captured graph: `train()` and `eval()` set the arguments `train` and `training` (of dropout, batch norm, LSTM …).

A captured graph contains `dropout(p, False)`; `train()` sets True, `eval()` sets False again.
The dropout probability inside of `scaled_dot_product_attention` is 0 in evaluation; `capture(…, training=True)` reads it from the model in
training mode and keeps it in the node's metadata. Layers that a model skips at random in training are not restored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_ATTENTION = aten.scaled_dot_product_attention.default
#: the metadata key of an attention node's dropout probability in training
DROPOUT = "fxprune_dropout_p"


def has_attention(graph: fx.Graph) -> bool:
    """Return whether a graph has an operator that hides its dropout in training."""
    return bool(graph.find_nodes(op="call_function", target=_ATTENTION))


def copy_dropout(graph: fx.GraphModule, training: fx.Graph) -> int:
    """Copy the dropout probabilities of attention from a graph captured in training mode; return the number of nodes that have one.

    Nothing is copied where the two graphs do not have the same attention nodes, module by module.
    """
    graphs = (graph.graph, training)
    ours, theirs = (list(each.find_nodes(op="call_function", target=_ATTENTION)) for each in graphs)
    if [_path(node) for node in ours] != [_path(node) for node in theirs]:
        return 0
    for node, other in zip(ours, theirs, strict=True):
        found = other.args[4] if len(other.args) > 4 else other.kwargs.get("dropout_p", 0.0)
        if isinstance(found, float) and found > 0:
            node.meta[DROPOUT] = found
    return sum(DROPOUT in node.meta for node in ours)


def _path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def switchable(module: fx.GraphModule) -> fx.GraphModule:
    """Make a module's `train()` and `eval()` switch dropout and batch norm, as those of the original model do; return the module."""
    own: Any = type(module)  # FX gives each graph module a class of its own

    def train(self: fx.GraphModule, mode: bool = True) -> fx.GraphModule:
        switch(self, training=mode)
        return super(own, self).train(mode)  # type: ignore[no-any-return]

    own.train = train
    return module


def switch(module: fx.GraphModule, training: bool) -> int:
    """Set the training arguments of all operators; return the number of operators that changed."""
    switches = [(node, name) for node in module.graph.nodes if (name := _training_argument(node))]
    changed = sum(_set(node, name, training) for node, name in switches)
    changed += sum(_drop(node, training) for node in module.graph.nodes if DROPOUT in node.meta)
    if changed:
        module.recompile()
    return changed


def _training_argument(node: fx.Node) -> str | None:
    """Return the boolean by which the schema of a node's operator has it train, None where there is none."""
    arguments = node.target._schema.arguments if isinstance(node.target, torch._ops.OpOverload) else ()
    names = [one.name for one in arguments if str(one.type) == "bool"]
    return next((name for name in names if name in ("train", "training")), None)


def _set(node: fx.Node, name: str, training: bool) -> bool:
    """Set the training argument of a node; return whether it changed."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return bool(_put(node, name, names.index(name), training, default=False)) != training


def _drop(node: fx.Node, training: bool) -> bool:
    """Set the dropout probability of an attention node (0 in evaluation); return whether it changed."""
    wanted = node.meta[DROPOUT] if training else 0.0
    return bool(_put(node, "dropout_p", 4, wanted, default=0.0) != wanted)


def _put(node: fx.Node, name: str, place: int, value: Any, default: Any) -> Any:
    """Set an argument where the node has it, by position or by name; return its value before."""
    if place < len(node.args):
        before = node.args[place]
        node.update_arg(place, value)
        return before
    before = node.kwargs.get(name, default)
    node.update_kwarg(name, value)
    return before
