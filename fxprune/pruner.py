"""Pruner: closes gates while a gated module trains.

Its parts are apart: how a unit's worth is known, what a unit costs, and how much is left when.

In each step, after the backward pass and before the optimizer's step, scores take in what the gates felt, and the least worthy units close
until the open ones cost what the schedule allows. Closed units never open again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis import analyze
from fxprune.errors import SelectionError, UsageError
from fxprune.gates import Gate, Gated, tensors_of
from fxprune.lowering import closing
from fxprune.program import attribute
from fxprune.units import Units

Schedule = Callable[[float], float]


def unit_costs(gated: Gated) -> dict[Gate, Tensor]:
    """How many parameters leave with each unit, float64 in the shape of its gates; SelectionError for gates of regions and blocks."""
    analysis = analyze(gated.base)
    nodes = {str(node.target): node for node in gated.base.graph.graph.find_nodes(op="get_attr")}
    costs = {}
    for gate in gated.gates:
        if gate.kind != "units":
            raise SelectionError(
                f"gate {gate.name}: only gates of units have a cost by unit, this one is of {gate.kind}"
            )
        axis = analysis.axis(gate.of)
        units = Units(axis, analysis.axis(gate.within) if gate.within else None)
        total = torch.zeros(units.count, dtype=torch.float64)
        for name in dict.fromkeys(member.name for member in axis.members if member.learned):
            weight = attribute(gated.base.graph, name)
            found = units.total(torch.ones(weight.shape), analysis.flow.dims[nodes[name]])
            total += found if found is not None else 0.0
        costs[gate] = total.reshape(gated.program.tensors()[gate.name].shape)
    return costs


@dataclass
class Taylor:
    """Moving averages of how much the loss would change if a unit closed: |gradient of its gate| (GRAIN, arXiv 2212.07634).

    The absolute value comes after the sum over the unit and the batch. `beta` is the share of the average that stays in each step. `alpha`
    (by gate, for gates within an outer axis) is structure regularisation: what comes in is multiplied by tanh(D / alpha), where D is the
    share of an outer unit's gates that is open, so that small ones empty first.
    """

    beta: float = 0.998
    alpha: Mapping[Gate, float] = field(default_factory=dict)

    def update(
        self, scores: dict[Gate, Tensor], slopes: Mapping[Gate, Tensor], open_: Mapping[Gate, Tensor]
    ) -> None:
        """One step; gates whose gradients are not finite skip it."""
        if not all(bool(slope.isfinite().all()) for slope in slopes.values()):
            return
        for gate, slope in slopes.items():
            felt = slope.abs()
            if gate in self.alpha:
                density = open_[gate].to(felt.dtype).mean(-1, keepdim=True)
                felt = felt * torch.tanh(density / self.alpha[gate])
            scores[gate] = self.beta * scores[gate] + (1 - self.beta) * felt


class Pruner:
    """Watches the gates of a module that trains, and closes them.

    The module may be wrapped by torch.compile, DistributedDataParallel or Accelerate. Gradients of gates are taken off in the backward
    pass, so that clipping and optimizers never see them; over processes they are averaged, so that all close the same units.
    """

    def __init__(
        self, gated: Gated, module: nn.Module, schedule: Schedule, score: Taylor | None = None
    ) -> None:
        self.gated, self.schedule, self.score = gated, schedule, score or Taylor()
        named = tensors_of(module)
        self.parameters = {gate: named[gate.name] for gate in gated.gates}
        self.costs = unit_costs(gated)
        self.open = {gate: torch.ones_like(cost, dtype=torch.bool) for gate, cost in self.costs.items()}
        self.scores = {gate: torch.zeros_like(cost) for gate, cost in self.costs.items()}
        self.listening = True
        self._felt: dict[Gate, Tensor] = {}
        self._closing = closing(gated)
        for gate, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(lambda p, own=gate: self._take(own, p))

    @property
    def density(self) -> float:
        """What the open units cost, as a share of all."""
        total = sum(float(cost.sum()) for cost in self.costs.values())
        return sum(float(self.costs[gate][open_].sum()) for gate, open_ in self.open.items()) / total

    def observe(self, loss: Tensor) -> None:
        """Let scores feel this loss only: what later backward passes bring to the gates is dropped until the step (gradient separation).

        The graph stays for the backward pass that trains.
        """
        found = torch.autograd.grad(
            loss, list(self.parameters.values()), retain_graph=True, allow_unused=True
        )
        for gate, slope in zip(self.parameters, found, strict=True):
            if slope is not None:
                self._add(gate, slope)
        self.listening = False

    def step(self, progress: float) -> None:
        """After the backward pass, before the optimizer's step; progress runs from 0 to 1."""
        slopes = _averaged(
            {gate: self._felt.get(gate, torch.zeros_like(self.scores[gate])) for gate in self.scores}
        )
        self._felt, self.listening = {}, True
        self.score.update(self.scores, slopes, self.open)
        self._close(self.schedule(progress))
        self.apply()

    def apply(self) -> None:
        """Put 0 and 1 into the gates."""
        with torch.no_grad():
            for gate, parameter in self.parameters.items():
                parameter.copy_(self.open[gate].to(parameter.dtype))

    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs: open units and scores, by the gates' names."""
        return {
            "open": {gate.name: open_.clone() for gate, open_ in self.open.items()},
            "scores": {gate.name: score.clone() for gate, score in self.scores.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; UsageError where it is of other gates."""
        for gate in self.open:
            for kind, now in (("open", self.open), ("scores", self.scores)):
                found = state[kind].get(gate.name)
                if found is None or found.shape != now[gate].shape:
                    raise UsageError(
                        f"the checkpoint has no {kind} of shape {tuple(now[gate].shape)} for {gate.name}"
                    )
                now[gate] = found.clone()
        self.apply()

    def _take(self, gate: Gate, parameter: Tensor) -> None:
        if self.listening and parameter.grad is not None:
            self._add(gate, parameter.grad)
        parameter.grad = None

    def _add(self, gate: Gate, slope: Tensor) -> None:
        wide = slope.detach().to("cpu", torch.float64)
        self._felt[gate] = self._felt[gate] + wide if gate in self._felt else wide

    def _close(self, share: float) -> None:
        """Close the least worthy units until the others cost at most a share of all; equal ones in their order."""
        ranked = _least_first(self.scores, self.open)
        costs = torch.cat([self.costs[gate].flatten() for gate in self.open])
        open_ = torch.cat([table.flatten() for table in self.open.values()])
        allowed = share * float(costs.sum())
        left = float(costs[open_].sum()) - costs[ranked].cumsum(0)
        over = torch.cat([costs[open_].sum()[None], left[:-1]]) > allowed * (1 + 1e-9)
        open_[ranked[over]] = False
        self._set(open_)

    def _set(self, flat: Tensor) -> None:
        sizes = [table.numel() for table in self.open.values()]
        for gate, part in zip(self.open, flat.split(sizes), strict=True):
            self.open[gate] = part.reshape(self.open[gate].shape)
        self.open = self._closing(self.open)


def _least_first(scores: Mapping[Gate, Tensor], open_: Mapping[Gate, Tensor]) -> Tensor:
    """The open units' places in all gates laid end to end, by rising score."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    here = torch.cat([table.flatten() for table in open_.values()]).nonzero().flatten()
    return here[flat[here].sort(stable=True).indices]


def _averaged(slopes: dict[Gate, Tensor]) -> dict[Gate, Tensor]:
    """The mean over all processes, where there are several."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return slopes
    flat = torch.cat([slope.flatten() for slope in slopes.values()])
    distributed.all_reduce(flat)
    parts: Sequence[Tensor] = (flat / distributed.get_world_size()).split(
        [s.numel() for s in slopes.values()]
    )
    return {
        gate: part.reshape(slope.shape) for (gate, slope), part in zip(slopes.items(), parts, strict=True)
    }
