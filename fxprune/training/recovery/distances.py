"""Distances of a pruned program's outputs from the original's, and which of them fits an output, by the operators that write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812 - its usual name

from fxprune.ir import Program, bind
from fxprune.rules import packet_of, traits_of

aten = torch.ops.aten

_SMALL = 1e-30

REACH = 5.0
"""Numbers inside a program that lie further from the mean, in standard deviations, are compared relative to themselves."""


LOGITS_AT_A_TIME = 1 << 21
"""Logits that are compared at a time."""


@dataclass(frozen=True)
class Scale:
    """Scale of a distance: the variance of the original's value, the temperature of logits, and the mean."""

    variance: float = 1.0
    temperature: float = 1.0
    mean: float = 0.0


Distance = Callable[[Tensor, Tensor, Scale], Tensor]
"""(value of the pruned program, value of the original, scale) -> a scalar, 0 where both are equal."""


def _square(ours: Tensor, theirs: Tensor, scale: Scale) -> Tensor:
    return (wide(ours) - wide(theirs)).square().mean() / scale.variance


def wide(value: Tensor) -> Tensor:
    """Return a value in float32 at least."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def bounded_square(ours: Tensor, theirs: Tensor, scale: Scale) -> Tensor:
    """Return the mean squared difference over the variance; beyond REACH, over the squared distance from the mean divided by REACH².

    A few massive activations, a thousand times as large as the others (arXiv 2402.17762), would else be all that the mean sees.
    """
    own = (theirs - scale.mean).square() / REACH**2
    return ((ours - theirs).square() / own.clamp_min(scale.variance)).mean()


def within_reach(value: Tensor) -> Tensor:
    """Return a value with its numbers clamped to REACH standard deviations from the mean."""
    mean, deviation = value.mean(), value.std(correction=0)
    return value.clamp(mean - REACH * deviation, mean + REACH * deviation)


def _cosine(ours: Tensor, theirs: Tensor, scale: Scale) -> Tensor:
    return 1 - F.cosine_similarity(wide(ours), wide(theirs), dim=-1).mean()


class _RowDivergence(torch.autograd.Function):
    """Mean divergence of rows of logits over a temperature, as a function of the first.

    Its gradient is the difference of the probabilities over the temperature. It is computed with the value, LOGITS_AT_A_TIME and in their
    own dtype: a language model has millions of logits, and passes over all of them in float32 would take longer than its matrices.
    """

    @staticmethod
    def forward(ctx: Any, ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
        own, other = (value.reshape(-1, value.shape[-1]) for value in (ours, theirs))
        learned = ctx.needs_input_grad[0]
        slope = torch.empty_like(own) if learned else own
        total = wide(ours.new_zeros(()))
        parts = (
            value.split(max(1, LOGITS_AT_A_TIME // max(1, own.shape[-1]))) for value in (own, other, slope)
        )
        for one, shown, place in zip(*parts, strict=True):
            near, log = (F.log_softmax(wide(value) / temperature, -1) for value in (one, shown))
            chance = log.exp()
            total += log.sub_(near).mul_(chance).sum()
            if learned:
                place.copy_(near.exp_().sub_(chance))
        ctx.save_for_backward(slope if learned else None)
        ctx.rows, ctx.shape, ctx.temperature = max(1, len(own)), ours.shape, temperature
        return total.div_(ctx.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        found: Tensor = slope * (grads[0] / (ctx.rows * ctx.temperature))
        return found.reshape(ctx.shape), None, None


def _divergence(ours: Tensor, theirs: Tensor, scale: Scale) -> Tensor:
    """Return the Kullback-Leibler divergence of the softmax over the last dim, times the squared temperature (Hinton 2015)."""
    found: Tensor = _RowDivergence.apply(ours, theirs, scale.temperature)  # type: ignore[no-untyped-call]
    return found * scale.temperature**2


def _logits(ours: Tensor, theirs: Tensor, scale: Scale) -> Tensor:
    return _divergence(ours, theirs, scale) + _square(ours, theirs, scale)


def _probabilities(ours: Tensor, theirs: Tensor, scale: Scale) -> Tensor:
    return _divergence(wide(ours).clamp_min(_SMALL).log(), wide(theirs).clamp_min(_SMALL).log(), scale)


#: name: (distance, description, the outputs that it fits)
OUTPUT_DISTANCES: dict[str, tuple[Distance, str, str]] = {
    "square": (
        _square,
        "squared difference over the variance of the original's values",
        "what none of the others fits",
    ),
    "logits": (
        _logits,
        "Kullback-Leibler divergence of the softmax over the last dim, plus `square`, which sees the offset that a softmax does not",
        "results of a matrix over the last dim, of at least two columns",
    ),
    "divergence": (
        _divergence,
        "that divergence alone: outputs may move by a constant",
        "a log-softmax over the last dim",
    ),
    "probabilities": (
        _probabilities,
        "the divergence of probabilities",
        "a softmax over the last dim",
    ),
    "cosine": (_cosine, "1 minus the cosine over the last dim", "none unasked: lengths are free"),
}

#: operator: the distance that fits its result, where it is over the last dim
_NORMALIZED = {
    aten.softmax: "probabilities",
    aten._softmax: "probabilities",
    aten.log_softmax: "divergence",
    aten._log_softmax: "divergence",
}


def floating_outputs(program: Program) -> dict[str, fx.Node]:
    """Return the outputs that can be compared, by readable name: those of floating point."""
    found = program.named_outputs()
    return {name: node for name, node in found.items() if node.meta["val"].is_floating_point()}


def fitting_distance(node: fx.Node) -> str:
    """Return the distance, a row of OUTPUT_DISTANCES, that fits an output by the operator that writes it."""
    writer = _writer(node)
    packet, value = packet_of(writer.target), writer.meta.get("val")
    if packet in _NORMALIZED and isinstance(value, Tensor):
        over = bind(writer)["dim"].value
        return _NORMALIZED[packet] if over in (-1, value.ndim - 1) else "square"
    row = traits_of(writer.target)
    linear = writer.op == "call_function" and row.is_matrix and row.linear and not row.linear.spatial
    wide = isinstance(value, Tensor) and value.ndim > 1 and _size(value) > 1
    return "logits" if linear and wide else "square"


def _size(value: Tensor) -> int:
    size: Any = value.shape[-1]
    return size if isinstance(size, int) else 0


def _writer(node: fx.Node) -> fx.Node:
    """Return the node that computes a value, behind those that pass it on or take parts of it, position by position."""
    while node.op == "call_function" and node.all_input_nodes:
        row = traits_of(node.target)
        if not (row.passes or row.moves == "part"):
            break
        node = node.all_input_nodes[0]
    return node
