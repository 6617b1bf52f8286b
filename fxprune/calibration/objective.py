"""Objective: the quantity that is differentiated, a loss that the user gives or, without labels, the distance to the model's own output.

At the model itself the gradient of that distance is zero, and its curvature is J'J, with J the Jacobian of the outputs: so the outputs are
projected on random directions v, and E[(v'J d)²] = |J d|² is the squared distance that a small change d makes (Hutchinson 1990).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.storage.devices import in_float64

Loss: TypeAlias = Callable[[Any, dict[str, Tensor]], Tensor]
"""(outputs, batch) -> a scalar to differentiate: the user's own loss on labelled data."""

_Random: TypeAlias = torch.Generator


def _square(value: Tensor, random: _Random) -> Tensor:
    """Return a random projection whose squared change is, in the mean over directions, the value's squared change over its own square."""
    signs = torch.randint(0, 2, value.shape, generator=random).to(value) * 2 - 1
    projected: Tensor = (value * signs).sum()
    length: Tensor = value.detach().square().sum().sqrt()
    return projected / length.clamp_min(1e-30)


def _divergence(value: Tensor, random: _Random) -> Tensor:
    """Return the log-probability of labels drawn from the model: its mean squared change is twice the KL divergence (true Fisher)."""
    log = _rows(value).log_softmax(-1)
    # multinomial draws a number for each class, a language model has millions in a batch.
    sums = in_float64(log.detach().exp()).cumsum(-1)
    level = torch.rand(len(sums), 1, generator=random, dtype=torch.float64).to(sums) * sums[:, -1:]
    drawn = torch.searchsorted(sums, level, right=True).clamp_max(sums.shape[1] - 1).to(log.device)
    total: Tensor = log.gather(1, drawn).sum()
    mean: Tensor = total / len(log) ** 0.5
    return mean


def _rows(value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1] if value.dim() else 1)


#: name: (the projection of one floating-point output, description of the distance)
DISTANCES: dict[str, tuple[Callable[[Tensor, _Random], Tensor], str]] = {
    "square": (_square, "squared difference of the outputs, relative to their squares"),
    "divergence": (
        _divergence,
        "Kullback-Leibler divergence of the softmax over the last dimension (logits)",
    ),
}


@dataclass(frozen=True)
class Objective:
    """A loss, or the name of a distance to the model's own output (a row of DISTANCES) with `draws` random directions per batch."""

    distance: str = "square"
    loss: Loss | None = None
    draws: int = 1
    seed: int = 0

    @property
    def says(self) -> str:
        """Description of the objective's figures, in words."""
        return "twice the change of the loss" if self.loss else DISTANCES[self.distance][1]

    def values(self, outputs: Any, batch: dict[str, Tensor], share: float, random: _Random) -> list[Tensor]:
        """Return scalars to differentiate for one batch with a `share` of all rows; the squares of their gradients add up over batches."""
        if self.loss is not None:
            return [self.loss(outputs, batch) * share**0.5]
        floating = _floating(outputs)
        if not floating:
            return [torch.zeros(())]
        project = DISTANCES[self.distance][0]
        scale = (share / len(floating) / self.draws) ** 0.5
        draws = ([project(value, random) for value in floating] for _ in range(self.draws))
        return [torch.stack(draw).sum() * scale for draw in draws]

    def gap(self, outputs: Any, others: Any, batch: dict[str, Tensor]) -> float:
        """Return the distance of other outputs, on the scale of the squared changes of `values`.

        With a loss: twice its increase. Else the mean over outputs of the relative squared distance, or of twice the divergence.
        """
        if self.loss is not None:
            return 2 * max(0.0, float(self.loss(others, batch)) - float(self.loss(outputs, batch)))
        pairs = zip(_floating(outputs), _floating(others), strict=True)
        gaps = [GAPS[self.distance](_wide(one), _wide(other)) for one, other in pairs]
        return sum(gaps) / max(1, len(gaps))


def _floating(outputs: Any) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(outputs) if isinstance(v, Tensor) and v.is_floating_point()]


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _squared_gap(value: Tensor, other: Tensor) -> float:
    wide = in_float64(value)
    return float((wide - in_float64(other)).square().sum() / wide.square().sum().clamp_min(1e-30))


def _divergence_gap(value: Tensor, other: Tensor) -> float:
    """Return twice the mean divergence of rows.

    In the values' own precision, for a language model has millions: the other logits are shifted by their mean difference, so that no
    difference of two large numbers is taken.
    """
    log, near = _rows(value).log_softmax(-1), _rows(other)
    shift = (log.exp() * (near - log)).sum(1, keepdim=True)
    found = 2 * float((near - shift).logsumexp(1).cpu().double().mean())
    return math.inf if math.isnan(found) else max(0.0, found)


GAPS: dict[str, Callable[[Tensor, Tensor], float]] = {"square": _squared_gap, "divergence": _divergence_gap}
