"""State of a run as tensors and numbers, for its checkpoints: taken, and restored after names, shapes and types were checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fxprune.errors import UsageError

_ADAM = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Parts of a run that change while it trains: the module, AdamW, the schedule of learning rates, and torch's random numbers."""

    module: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    device: torch.device

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of module and optimizer by name."""
        kinds = {"module": _module_tensors(self.module), "optimizer": _optimizer_tensors(self.optimizer)}
        return {f"{kind}.{name}": value for kind, found in kinds.items() for name, value in found.items()}

    def random(self) -> list[Tensor]:
        """Return the states of torch's random numbers: the CPU's, and on a graphics card also the card's."""
        cards = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *cards]

    def rates(self) -> dict[str, Any]:
        """Return the numbers of the schedule."""
        state = self.schedule.state_dict()
        return {"steps": state["last_epoch"], "calls": state["_step_count"], "rates": state["_last_lr"]}

    def restore(self, tensors: Mapping[str, Tensor], rates: Any, random: str) -> None:
        """Restore all of it, the random numbers from the tensors below a name; UsageError where something does not fit."""
        _check_rates(rates, len(self.optimizer.param_groups))
        _restore_module(self.module, _below("module", tensors))
        _restore_optimizer(self.optimizer, _below("optimizer", tensors), rates["rates"])
        self.schedule.last_epoch, self.schedule._step_count = rates["steps"], rates["calls"]
        self.schedule._last_lr = list(rates["rates"])
        self._restore_random(_below(random, tensors))

    def _restore_random(self, tensors: Mapping[str, Tensor]) -> None:
        _check_tensors("random numbers", tensors, {str(i): state for i, state in enumerate(self.random())})
        try:
            torch.set_rng_state(tensors["0"])
            if "1" in tensors:
                torch.cuda.set_rng_state(tensors["1"], self.device)
        except RuntimeError as error:
            raise UsageError(f"random numbers: {str(error).splitlines()[0]}") from error


def _below(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a kind, by their names without it."""
    found = {name: value for name, value in tensors.items() if name.startswith(f"{kind}.")}
    return {name.removeprefix(f"{kind}."): value for name, value in found.items()}


def _module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module's state by name; of a tied one, the first name. UsageError for state that is no tensor."""
    state = module.state_dict(keep_vars=True)
    other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if other:
        raise UsageError(f"a checkpoint holds tensors, and the module's {other!r} is none")
    first: dict[int, str] = {}
    for name, value in state.items():
        first.setdefault(id(value), name)
    return {name: state[name].detach() for name in first.values()}


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the state of AdamW as tensors, named by the parameter's number and the key."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{key}": value for number, entry in state.items() for key, value in entry.items()}


def _restore_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module; UsageError unless they are those of its state."""
    own = _module_tensors(module)
    _check_tensors("module", tensors, own)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], rates: Sequence[float]) -> None:
    """Restore the state of AdamW and its learning rates; UsageError unless they fit its parameters."""
    whole = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    begun = [number for number in range(len(parameters)) if f"{number}.step" in tensors]
    _check_tensors("optimizer", tensors, {
        f"{number}.{key}": torch.empty((), dtype=torch.float32, device="meta") if key == "step" else parameters[number]
        for number in begun for key in _ADAM
    })  # fmt: skip
    whole["state"] = {number: {key: tensors[f"{number}.{key}"] for key in _ADAM} for number in begun}
    for group, rate in zip(whole["param_groups"], rates, strict=True):
        group["lr"] = rate
    optimizer.load_state_dict(whole)


def _check_rates(rates: Any, count: int) -> None:
    """Raise UsageError unless these are the numbers of a schedule of so many rates."""
    told = rates if isinstance(rates, dict) else {}
    values, numbers = told.get("rates"), (told.get("steps"), told.get("calls"))
    listed = isinstance(values, list) and [type(value) for value in values] == [float] * count
    if not listed or not all(isinstance(number, int) for number in numbers):
        raise UsageError(f"schedule: expected steps, calls and {count} rates")


def _check_tensors(what: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise UsageError unless both have the same names, with the same shapes and dtypes."""
    other = sorted(found.keys() ^ wanted.keys())
    if other:
        raise UsageError(f"{what}: {other[0]} is only {'there' if other[0] in found else 'in this run'}")
    for name, own in wanted.items():
        given = found[name]
        if (given.shape, given.dtype) != (own.shape, own.dtype):
            raise UsageError(f"{what}: {name} is {_form(given)} there, and {_form(own)} in this run")


def _form(value: Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")
