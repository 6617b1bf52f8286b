"""Weight names: a program's weights under the names of a smaller model of the same class, with lists of modules renumbered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from fxprune.export.parametrizations import originals
from fxprune.integrations.huggingface.config_search import CONTAINERS, COUNT, ConfigSizes
from fxprune.ir import Program

Moves: TypeAlias = Mapping[str, Mapping[str, str | None]]
"""For each list of modules, by path: the new key of each module by its old key, None for removed ones."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a smaller model, by its own names.

    `values` are the program's tensors; `carried` those of the model that the program does not read, unchanged. `kept` are the indices that
    stay of lists which lost modules, by the length of the list before.
    """

    sizes: ConfigSizes
    values: Mapping[str, Tensor]
    carried: Mapping[str, Tensor]
    kept: Mapping[int, tuple[int, ...]]


def possible_namings(model: nn.Module, program: Program) -> list[Weights]:
    """Return the possible namings of the program's weights: modules without any weight left are removed, or are unread and stay."""
    state = model.state_dict(keep_vars=True)
    computed = originals(model, program).values()
    present = _present(state, program) | {name: value for each in computed for name, value in each.items()}
    moves = _moves(model, set(state), set(present))
    lists = {path: module for path, module in model.named_modules() if isinstance(module, CONTAINERS)}
    whole: Moves = {path: {key: key for key in module._modules} for path, module in lists.items()}
    ways: list[Moves] = [moves] if moves == whole else [moves, whole]
    return [_weights(state, present, way) for way in ways]


def added_weights(model: nn.Module, program: Program) -> list[str]:
    """Return the learned weights of the program that the model neither has nor computes: factors, and biases that were added."""
    known = model.state_dict().keys() | {name for name, found in originals(model, program).items() if found}
    return sorted(program.parameters().keys() - known)


def _present(state: Mapping[str, Tensor], program: Program) -> dict[str, Tensor]:
    """Return the program's tensors by every name that the model has for them: tied weights have several there, and one in the program."""
    tensors = program.tensors()
    shared = {id(value): tensors[name] for name, value in state.items() if name in tensors}
    found = {name: tensors.get(name, shared.get(id(value))) for name, value in state.items()}
    return {name: value for name, value in found.items() if value is not None}


def _moves(model: nn.Module, names: set[str], present: set[str]) -> Moves:
    """Return the moves of all lists; a module is removed where none of the weights common to its list is left.

    A module may have further weights, which others read.
    """
    moves: dict[str, dict[str, str | None]] = {}
    for path, module in model.named_modules():
        if isinstance(module, CONTAINERS):
            places = {key: f"{path}.{key}.".lstrip(".") for key in module._modules}
            own = {key: {n.removeprefix(at) for n in names if n.startswith(at)} for key, at in places.items()}
            filled = [each for each in own.values() if each]
            common = set.intersection(*filled) if filled else set()
            left = {key: any(places[key] + name in present for name in common or own[key]) for key in own}
            kept = [key for key in own if left[key] or not own[key]]
            new = {key: str(i) if key.isdigit() else key for i, key in enumerate(kept)}
            moves[path] = {key: new.get(key) for key in own}
    return moves


def _weights(state: Mapping[str, Tensor], present: Mapping[str, Tensor], moves: Moves) -> Weights:
    named = {name: _moved(name, moves) for name in state}
    values = {new: present[name] for name, new in named.items() if new and name in present}
    stranded = {name: present[name] for name, new in named.items() if new is None and name in present}
    values = stranded | values  # weights of a removed module that others read keep their names
    unread = {name: value.detach() for name, value in state.items() if name not in present}
    carried = {new: value for name, value in unread.items() if (new := named[name])}
    left = {path: [i for i, new in enumerate(keys.values()) if new] for path, keys in moves.items()}
    counts = {(new, COUNT): len(left[path]) for path in moves if (new := _moved(path, moves)) is not None}
    sizes = {(name, dim): size for name, value in values.items() for dim, size in enumerate(value.shape)}
    kept = {len(keys): tuple(left[path]) for path, keys in moves.items() if len(left[path]) < len(keys)}
    return Weights(counts | sizes, values, carried, kept)


def _moved(name: str, moves: Moves) -> str | None:
    """Return the new name of a tensor or module; None where a module on its path is removed."""
    path, parts = "", []
    for part in name.split(".") if name else []:
        new = moves[path].get(part) if path in moves else part
        if new is None:
            return None
        parts.append(new)
        path = f"{path}.{part}".lstrip(".")
    return ".".join(parts)
