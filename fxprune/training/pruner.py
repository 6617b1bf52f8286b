"""Pruner: close gates while a gated module trains, by a score, the cost of each unit, and a budget.

In each step, after the backward pass and before the optimizer's step, the score takes in the gradients of the gates
(`fxprune.training.gate_scores`), and the budget decides which gates are open (`fxprune.training.gate_budgets`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fxprune.analysis import Units, analyze
from fxprune.errors import SelectionError
from fxprune.gates import Gate, Gated
from fxprune.gates.fold_values import fold_values
from fxprune.gates.gate import tensors_of, unwrapped
from fxprune.gates.implied import implied_closer
from fxprune.ir import attribute, set_attribute
from fxprune.training.gate_budgets import GateBudget, GateState, Stochastic
from fxprune.training.gate_scores import GateScore, StepInputs, Taylor


def unit_costs(gated: Gated) -> dict[Gate, Tensor]:
    """Return the number of parameters that removing each unit removes, float64 in the shape of its gates.

    SelectionError for gates of regions.
    """
    analysis = analyze(gated.base)
    nodes = gated.base.reads()
    costs = {}
    for gate in gated.gates:
        if gate.grid is not None:
            costs[gate] = gate.grid.areas()
            continue
        if gate.kind != "units":
            raise SelectionError(
                f"gate {gate.name}: only units and blocks have a cost, this is a gate of a {gate.kind}"
            )
        axis = analysis.axis(gate.of)
        units = Units(axis, analysis.axis(gate.within) if gate.within else None)
        total = torch.zeros(units.count, dtype=torch.float64)
        for name in dict.fromkeys(member.name for member in axis.members if member.learned):
            weight = attribute(gated.base.graph_module, name)
            found = units.total(torch.ones(weight.shape), analysis.flow.dims[nodes[name]])
            total += found if found is not None else 0.0
        costs[gate] = total.reshape(gated.program.tensors()[gate.name].shape)
    return costs


class Pruner:
    """Controller that closes the gates of a module during training.

    The module may be wrapped by torch.compile, DistributedDataParallel or Accelerate. Gradients of gates are removed in the backward pass,
    so that clipping and optimizers never get them; they are averaged over processes, so that all close the same units. The state (open
    gates, scores and their slots) is kept in the module, as its gates and buffers: it is saved and loaded with the module.
    """

    def __init__(
        self, gated: Gated, module: nn.Module, budget: GateBudget, score: GateScore | None = None
    ) -> None:
        self.gated, self.budget, self.score = gated, budget, score or Taylor()
        self.module, named = unwrapped(module), tensors_of(module)
        self.parameters = {gate: named[gate.name] for gate in gated.gates}
        self.costs = unit_costs(gated)
        self.scores = {gate: self._held("scores", gate) for gate in gated.gates}
        self.slots = {
            name: {gate: self._held(name, gate, each) for gate in gated.gates}
            for name, each in self.score.slots.items()
        }
        self.listening = True
        self._gradients: dict[Gate, Tensor] = {}
        self._closing = implied_closer(gated)
        for gate, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(lambda p, own=gate: self._take(own, p))

    def _held(self, what: str, gate: Gate, each: bool = True) -> Tensor:
        """Return a buffer of the module for a gate (a number for each unit if `each`, else one number), registered where there is none."""
        name = f"gate_{what}.{gate.name.partition('.')[2]}"
        if name not in dict(self.module.named_buffers()):
            shape = self.parameters[gate].shape if each else ()
            value = torch.zeros(shape, dtype=self.score.dtype, device=self.parameters[gate].device)
            set_attribute(self.module, name, value)
        held: Tensor = attribute(self.module, name)
        return held

    @property
    def open(self) -> dict[Gate, Tensor]:
        """The units that are open, booleans."""
        return {gate: parameter.detach() > 0 for gate, parameter in self.parameters.items()}

    @property
    def density(self) -> float:
        """Cost of the open units, as a share of the cost of all."""
        total = sum(float(cost.sum()) for cost in self.costs.values())
        if not total:
            return 1.0
        return sum(float(self.costs[gate][open_.cpu()].sum()) for gate, open_ in self.open.items()) / total

    def observe(self, loss: Tensor | None) -> None:
        """Take the gates' gradients from this loss only, or from none; gradients of later backward passes are dropped until `step`.

        This is gradient separation. The autograd graph is retained for the backward pass that trains.
        """
        self.listening = False
        if loss is None:
            return
        gates = list(self.parameters.values())
        found = torch.autograd.grad(loss, gates, retain_graph=True, allow_unused=True)
        for gate, slope in zip(self.parameters, found, strict=True):
            if slope is not None:
                self._add(gate, slope)

    def step(self, progress: float) -> None:
        """Update the scores and the open gates, after the backward pass and before the optimizer's step; progress runs from 0 to 1."""
        none = {gate: torch.zeros_like(score) for gate, score in self.scores.items()}
        slopes = _averaged(none | self._gradients)
        self._gradients, self.listening = {}, True
        open_ = self.open
        self.score.update(StepInputs(self.scores, slopes, open_, progress, self.slots))
        left = self._closing(self.budget(GateState(open_, self.scores, self.costs), progress))
        self._put(left)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Set the gates to their deployed values within the block, for an evaluation during training; only stochastic gates change."""
        before = {gate: parameter.detach().clone() for gate, parameter in self.parameters.items()}
        self._put(self.budget.settled() if isinstance(self.budget, Stochastic) else {})
        try:
            yield
        finally:
            self._put(before)

    def settle(self) -> None:
        """Set stochastic gates to 0 or 1 at the end of training, and fold their values into weights."""
        if isinstance(self.budget, Stochastic):
            fold_values(self.gated, self.module, self.budget.settled())

    def _put(self, values: Mapping[Gate, Tensor]) -> None:
        with torch.no_grad():
            for gate, value in values.items():
                self.parameters[gate].copy_(value)

    def _take(self, gate: Gate, parameter: Tensor) -> None:
        if self.listening and parameter.grad is not None:
            self._add(gate, parameter.grad)
        parameter.grad = None

    def _add(self, gate: Gate, slope: Tensor) -> None:
        wide = slope.detach().to(self.score.dtype)
        self._gradients[gate] = self._gradients[gate] + wide if gate in self._gradients else wide


def _averaged(slopes: dict[Gate, Tensor]) -> dict[Gate, Tensor]:
    """Return the mean over all processes, where there are several."""
    distributed = torch.distributed
    if not slopes or not (distributed.is_available() and distributed.is_initialized()):
        return slopes
    flat = torch.cat([slope.flatten() for slope in slopes.values()])
    distributed.all_reduce(flat)
    mean = flat / distributed.get_world_size()
    parts: Sequence[Tensor] = mean.split([slope.numel() for slope in slopes.values()])
    pairs = zip(slopes.items(), parts, strict=True)
    return {gate: part.reshape(slope.shape) for (gate, slope), part in pairs}
