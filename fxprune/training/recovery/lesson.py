"""Lesson: the loss of a pruned program from what its original says on a batch, at the outputs and inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.calibration.data import Batch, flatten_batch
from fxprune.calibration.processes import summed
from fxprune.ir import Program
from fxprune.training.recovery.distances import (
    OUTPUT_DISTANCES,
    Scale,
    bounded_square,
    fitting_distance,
    floating_outputs,
    within_reach,
)
from fxprune.training.recovery.matching import Match
from fxprune.training.recovery.tapped import moved, restoring, tapped, written_buffers

OwnDistance: TypeAlias = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""(outputs of the pruned program by name, outputs of the original) -> a scalar to minimise: the user's own."""

_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Shown:
    """What the original says on a batch: its outputs, and its values at the taps."""

    outputs: tuple[Tensor, ...]
    inside: tuple[Tensor, ...]


class Original:
    """The original program as a teacher, on the device of its weights."""

    def __init__(self, program: Program, matches: Sequence[Match]) -> None:
        self.program, self.matches = program, tuple(matches)
        self.module = tapped(program, [each.name for each in matches], own=False)
        self._written = written_buffers(program)

    def show(self, flat: Sequence[Any]) -> Shown:
        """Return what it says on flat inputs."""
        with torch.no_grad(), restoring(self.module, self._written):
            outputs, inside = self.module(*flat)
        return Shown(
            outputs, tuple(each.cut(value) for each, value in zip(self.matches, inside, strict=True))
        )


class Lesson(nn.Module):
    """The pruned program as a module whose forward returns its losses: at the outputs, and inside.

    `distances` names the distance of each output; `scales` are those of the outputs and then of the taps (see `measure`).
    """

    def __init__(
        self,
        program: Program,
        matches: Sequence[Match],
        distances: Mapping[str, str],
        own: OwnDistance | None = None,
    ) -> None:
        super().__init__()
        self.graph = tapped(program, [each.name for each in matches], own=True)
        self.distances, self.own = dict(distances), own
        self.names = tuple(floating_outputs(program))
        self.scales: tuple[Scale, ...] = ()
        self.frozen_buffers = written_buffers(program)

    def forward(self, flat: Sequence[Any], shown: Shown, local: bool = False) -> tuple[Tensor, Tensor]:
        """Return (the loss at the outputs, the mean loss inside); `local`: each part reads the original's value of its input."""
        given = shown.inside if local else ()
        with restoring(self.graph, self.frozen_buffers):
            outputs, inside = self.graph(*flat, *given)
        return self.compare(outputs, shown.outputs), self._inside(inside, shown.inside)

    def compare(self, outputs: Sequence[Tensor], shown: Sequence[Tensor]) -> Tensor:
        """Return the sum over the outputs of their distances."""
        if self.own is not None:
            return self.own(self._named(outputs), self._named(shown))
        found = [
            OUTPUT_DISTANCES[self.distances[name]][0](ours, theirs, scale)
            for name, ours, theirs, scale in zip(self.names, outputs, shown, self.scales, strict=False)
            if self.distances[name]
        ]
        return torch.stack(found).sum()

    def _inside(self, values: Sequence[Tensor], shown: Sequence[Tensor]) -> Tensor:
        scales = self.scales[len(self.names) :]
        if not scales:
            return torch.zeros((), device=next(self.graph.parameters()).device)
        found = [
            bounded_square(a.float(), b.float(), scale)
            for a, b, scale in zip(values, shown, scales, strict=True)
        ]
        return torch.stack(found).mean()

    def _named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, values, strict=True))

    def measure(self, shown: Iterable[Shown], temperature: float) -> None:
        """Set the scales: the variance of each of the original's values over some batches, of all processes."""
        moments = [_moments(each) for each in shown]
        device = next(self.graph.parameters()).device
        sums = summed(torch.stack([torch.stack(each) for each in moments]).sum(0), device)
        count, first, second = sums.unbind(0)
        means = first / count
        variances = (second / count - means.square()).clamp_min(_LEAST)
        pairs = zip(variances.tolist(), means.tolist(), strict=True)
        self.scales = tuple(Scale(variance, temperature, mean) for variance, mean in pairs)


def _moments(shown: Shown) -> tuple[Tensor, Tensor, Tensor]:
    """Return the count, sum and sum of squares of each value, in float64; those inside with what lies beyond REACH clamped."""
    values = [value.double() for value in shown.outputs]
    values += [within_reach(value.double()) for value in shown.inside]
    rows = [(float(v.numel()), float(v.sum()), float(v.square().sum())) for v in values]
    count, first, second = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).unbind(1)
    return count, first, second


def output_distances(program: Program, asked: str) -> dict[str, str]:
    """Return the distance of each floating-point output: the one asked for, or what fits."""
    return {name: asked or fitting_distance(node) for name, node in floating_outputs(program).items()}


def flat_inputs(program: Program, batch: Batch, device: torch.device) -> list[Any]:
    """Return a batch as flat inputs on a device."""
    return moved(flatten_batch(program, batch), device)
