"""Parametrizations: attributes that modules compute from parameters (weight norm, spectral norm), and how they take a given value.

Capture folds such attributes: a program has the parameter `up.weight` where the model computes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxprune.frontend.module_state import remember
from fxprune.ir import Program, difference, tolerance


def originals(model: nn.Module, program: Program) -> dict[str, dict[str, Tensor]]:
    """Return the parameters of a program that its model computes (`up.weight`), each with those from which the model computes that value.

    These are by the model's names: its own, where the value is the model's; none where it can't compute this value.
    """
    parameters = program.parameters()
    found: dict[str, dict[str, Tensor]] = {}
    for path, module in model.named_modules():
        at = f"{path}." if path else ""
        for name in (name for name in _computed(module) if f"{at}{name}" in parameters):
            inverse = _inverse(module, name, parameters[f"{at}{name}"].detach())
            found[f"{at}{name}"] = {f"{at}{own}": value for own, value in inverse.items()}
    return found


def make_plain(module: nn.Module, name: str) -> Callable[[], None]:
    """Turn a computed attribute of a module into a parameter, and return what undoes it."""
    restore, kind = remember(module), type(module)
    getter = vars(kind).get(name)

    def undo() -> None:
        module.__class__ = kind
        if getter is not None:
            setattr(kind, name, getter)
        restore()

    hook = _hook(module, name)
    if hook is not None:
        (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(module, name)
        return undo
    entries: Any = module.parametrizations
    stored = entries[name]._parameters
    if "original" in stored:  # torch writes into it, and it is the user's
        stored["original"] = copy.deepcopy(stored["original"])
    parametrize.remove_parametrizations(module, name)
    return undo


def _computed(module: nn.Module) -> list[str]:
    """Return the names of a module's computed attributes."""
    parametrized: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
    hooks: list[Any] = [hook for hook in module._forward_pre_hooks.values() if _is_norm(hook)]
    return [*parametrized, *(hook.name for hook in hooks)]


def _is_norm(hook: Any) -> bool:
    return isinstance(hook, (WeightNorm, SpectralNorm))


def _hook(module: nn.Module, name: str) -> Any:
    hooks: list[Any] = list(module._forward_pre_hooks.values())
    return next((hook for hook in hooks if _is_norm(hook) and hook.name == name), None)


def _inverse(module: nn.Module, name: str, value: Tensor) -> dict[str, Tensor]:
    """Return the tensors from which a module computes this value, by its names; none where it can't (a spectral norm fixes the scale)."""
    hook = _hook(module, name)
    with torch.no_grad():
        return _before_hook(module, hook, value) if hook else _before_list(module, name, value)


def _before_hook(module: nn.Module, hook: Any, value: Tensor) -> dict[str, Tensor]:
    is_weight_norm = isinstance(hook, WeightNorm)
    now = hook.compute_weight(*((module,) if is_weight_norm else (module, False)))
    if torch.equal(now, value):
        parameters = dict(module.named_parameters(recurse=False))
        suffixes = ("_g", "_v") if is_weight_norm else ("_orig",)
        return {f"{hook.name}{end}": parameters[f"{hook.name}{end}"] for end in suffixes}
    length = torch.norm_except_dim(value, 2, hook.dim) if is_weight_norm else None
    return {} if length is None else {f"{hook.name}_g": length, f"{hook.name}_v": value}


def _before_list(module: nn.Module, name: str, value: Tensor) -> dict[str, Tensor]:
    entries: Any = module.parametrizations
    made = copy.deepcopy(entries[name]).eval()
    if torch.equal(made(), value):
        made = entries[name]
    elif not _takes(made, value):
        return {}
    own = {each: parameter for each, parameter in made.named_parameters() if each.startswith("original")}
    return {f"parametrizations.{name}.{each}": parameter.detach() for each, parameter in own.items()}


def _takes(entries: Any, value: Tensor) -> bool:
    """Return whether a list of parametrizations computes a value after it was assigned; it stays assigned."""
    try:
        entries.right_inverse(value.clone())
        return difference([entries()], [value]) <= tolerance([value])
    except Exception:  # noqa: BLE001 - whatever a parametrization raises for a value that it can't have, or has no inverse for
        return False
