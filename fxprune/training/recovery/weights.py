"""Weights of a module in training: copies, their running mean, and the exchange of one for the other; those that are sharded stay so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fxprune.training.sharded import put

NamedWeights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Best:
    """The best moment so far: its held-back loss, and the weights."""

    loss: float
    weights: NamedWeights = field(repr=False)


def copied(module: nn.Module) -> NamedWeights:
    """Return copies of the parameters and buffers, by name."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@contextmanager
def exchanged(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other weights into a module for the time of the block."""
    own = copied(module)
    put(module, weights)
    try:
        yield
    finally:
        put(module, own)


class Average:
    """Exponential moving average of a module's weights, over about `horizon` steps, fewer at first."""

    def __init__(self, module: nn.Module, horizon: float) -> None:
        self.horizon, self.weights, self.count = max(1.0, horizon), copied(module), 0

    def update(self, module: nn.Module) -> None:
        """Take in the weights of now."""
        self.count += 1
        share = 1 / min(self.horizon, self.count)
        with torch.no_grad():
            for name, value in module.state_dict().items():
                mean = self.weights[name]
                mean.lerp_(value, share) if mean.is_floating_point() else mean.copy_(value)
