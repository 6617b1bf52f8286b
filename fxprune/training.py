"""Train and eval: what is captured says `dropout(p, False)`; a module for training says True again, and `eval()` goes back.

Two things of training can't come back, for the captured graph no longer has them: the dropout probability inside of
`scaled_dot_product_attention` (0 in evaluation), and layers that a model skips at random.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

#: operator: the argument that says whether it trains
SWITCHES: dict[Any, str] = {
    aten.dropout: "train",
    aten.feature_dropout: "train",
    aten.alpha_dropout: "train",
    aten.feature_alpha_dropout: "train",
    aten.rrelu: "training",
    aten.batch_norm: "training",
}


def switchable(module: fx.GraphModule) -> fx.GraphModule:
    """The module itself, whose `train()` and `eval()` now switch dropout and batch norm, as those of the original model do."""
    own: Any = type(module)  # FX gives each graph module a class of its own

    def train(self: fx.GraphModule, mode: bool = True) -> fx.GraphModule:
        switch(self, training=mode)
        return super(own, self).train(mode)  # type: ignore[no-any-return]

    own.train = train
    return module


def switch(module: fx.GraphModule, training: bool) -> int:
    """Set the arguments that say whether operators train; the number of operators that changed."""
    changed = sum(_set(node, training) for node in module.graph.nodes if _is_switch(node))
    if changed:
        module.recompile()
    return changed


def _is_switch(node: fx.Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in SWITCHES


def _set(node: fx.Node, training: bool) -> bool:
    """Whether the node's argument was the other one before."""
    name = SWITCHES[node.target.overloadpacket]  # type: ignore[union-attr]
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index(name)
    before = node.args[place] if place < len(node.args) else node.kwargs.get(name, False)
    if place < len(node.args):
        node.update_arg(place, training)
    else:
        node.update_kwarg(name, training)
    return bool(before) != training
