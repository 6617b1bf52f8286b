"""Batch norms of a graph: their running statistics estimated anew on data, and whether they train with those of each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.ir import attribute, bind

aten = torch.ops.aten

TRAINABLE = frozenset({aten.batch_norm.default})
"""Batch norms with an argument by which they take the statistics of the batch, and update their running ones."""


def batch_norms(graph: fx.GraphModule) -> list[fx.Node]:
    """Return the batch norms with running statistics of their own."""
    found = [node for node in graph.graph.nodes if node.target in TRAINABLE]
    return [node for node in found if all(isinstance(each, fx.Node) for each in _running(node))]


def statistics(graph: fx.GraphModule) -> tuple[str, ...]:
    """Return the names of the running statistics of all batch norms."""
    return tuple(str(each.target) for node in batch_norms(graph) for each in _running(node))


def set_training(graph: fx.GraphModule, training: bool, momentum: float = 0.1) -> None:
    """Make the batch norms use the statistics of the batch and update the running ones by `momentum`, or use the running ones."""
    changed = [node for node in batch_norms(graph) if node.args[5:7] != (training, momentum)]
    for node in changed:
        node.args = (*node.args[:5], training, momentum, *node.args[7:])
    if changed:
        graph.recompile()


@contextmanager
def estimating(graph: fx.GraphModule) -> Iterator[None]:
    """Collect, over the runs of the block, the mean of each batch norm's statistics in place of its running ones."""
    names = statistics(graph)
    sums = {name: torch.zeros_like(attribute(graph, name)) for name in names}
    counts = dict.fromkeys(names, 0)

    def listen(module: fx.GraphModule) -> None:
        with torch.no_grad():
            for name in names:
                sums[name] += attribute(module, name)
                counts[name] += 1

    set_training(graph, True, momentum=1.0)  # the running statistics are then those of the last batch
    hook = graph.register_forward_hook(lambda module, args, out: listen(module))
    try:
        yield
    finally:
        hook.remove()
        set_training(graph, False)
        with torch.no_grad():
            for name in names:
                if counts[name]:
                    attribute(graph, name).copy_(sums[name] / counts[name])


def estimate(graph: fx.GraphModule, batches: Iterable[list[Any]]) -> None:
    """Estimate the running statistics anew, as the mean over batches of flat inputs, layers seeing normalised inputs."""
    with torch.no_grad(), estimating(graph):
        for flat in batches:
            graph(*flat)


def _running(node: fx.Node) -> tuple[Any, Any]:
    bound = bind(node)
    return bound["running_mean"].value, bound["running_var"].value


def running_statistics(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Return copies of the running statistics."""
    return {name: attribute(graph, name).clone() for name in statistics(graph)}
