"""Islands: the largest submodules that torch.export can capture, where it can't capture the model that they lie in.

The whole model runs on its example inputs, and the calls of its submodules are recorded. From the model down, each that can be captured
becomes an island; of the others the children are tried. All are then captured once more, side by side, as one Program.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError, FxpruneError, UsageError
from fxprune.frontend.agreement import SAME, comparable, is_random, outputs_on
from fxprune.frontend.module_calls import CallInputs, Calls, record_calls
from fxprune.ir import Program, describe_error, difference
from fxprune.ir.islands import Island, Islands, bound_arguments
from fxprune.ir.naming import free_name
from fxprune.rewrite.islands import connected_nodes, in_model, island_results

Capture = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Program]
"""Capture of a module on (args, kwargs) with dynamic shapes."""

_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass
class _Search:
    """Search for islands: the model, the calls of its modules, how to capture one, and whether all sizes shall vary.

    `why` has the reasons of the modules that are no islands, `fit` the paths of those that can be captured, and `chosen` those that are.
    """

    model: nn.Module
    calls: Mapping[str, Calls]
    capture: Capture
    dynamic: bool
    why: dict[str, str]
    fit: set[str] = field(default_factory=set)
    chosen: dict[str, nn.Module] = field(default_factory=dict)

    def visit(self, path: str) -> None:
        """Take a module for an island, or search its children."""
        module = self.model.get_submodule(path)
        taken = any(part is module for each in self.chosen.values() for part in each.modules())
        if taken or not any(True for _ in module.parameters()):
            return
        if path not in self.why and path not in self.fit:
            self._try(path, module)
        if path in self.fit and path not in self.why:
            self.chosen[path] = module
            return
        for name, _ in module.named_children():
            self.visit(f"{path}.{name}" if path else name)

    def _try(self, path: str, module: nn.Module) -> None:
        told = unfit(self.calls, path)
        try:
            if not told:
                self.capture(*_beside(self, {path: module}))
        except Exception as error:  # noqa: BLE001 - whatever it is, the module is no island
            told = str(error) if isinstance(error, FxpruneError) else describe_error(error)
            told = told.replace(SideBySide.__name__, type(module).__name__)
        if told:
            self.why[path] = told
        else:
            self.fit.add(path)


def capture_islands(
    model: nn.Module,
    inputs: CallInputs,
    within: str | Sequence[str],
    dynamic: bool,
    capture: Capture,
    reason: str,
) -> Program:
    """Capture the islands of a model as one Program. `within` is "auto", or the paths of modules that are to be captured.

    `reason` says why the whole model can't be. CaptureError where there is no island, or one that was asked for can't be captured.
    """
    try:
        calls = record_calls(model, inputs)
    except Exception as error:
        own = f"{type(model).__name__} itself does not run on the example inputs: {describe_error(error)}"
        raise CaptureError(reason if within == "auto" else own) from error
    search = _Search(model, calls, capture, dynamic, {"": reason})
    asked = () if within == "auto" else (within,) if isinstance(within, str) else tuple(within)
    while True:
        search.chosen.clear()
        for path in _starts(model, calls, asked):
            search.visit(path)
        _check_asked(search, asked)
        program = _together(search, inputs)
        faults = faults_in_model(program)
        if not faults:
            return _described(program, search.why)
        search.why |= faults


def _starts(model: nn.Module, calls: Mapping[str, Calls], asked: Sequence[str]) -> Iterator[str]:
    """Yield the paths at which the search starts: those that are asked for, or the children of those that are never called."""
    known = dict(model.named_modules(remove_duplicate=False))
    for path in asked or ("",):
        if path not in known:
            near = ", ".join(get_close_matches(path, known, n=3)) or ", ".join(list(known)[1:6])
            raise UsageError(f"within={path!r}: {type(model).__name__} has no such module; near: {near}")
        children = [f"{path}.{name}" for name, _ in known[path].named_children()]
        yield from [path] if path in calls or not path else children


def _check_asked(search: _Search, asked: Sequence[str]) -> None:
    """Raise CaptureError where a module that was asked for can't be captured, or no module can."""
    for path in asked:
        if path in search.why:
            raise CaptureError(
                f"{path} can't be captured: {search.why[path]}; within='auto' captures what can be of it"
            )
    if asked and not search.chosen:
        raise CaptureError(f"{', '.join(asked)}: there are no parameters in it")
    if not search.chosen:
        told = next((why for path, why in search.why.items() if path), "it has no parameters")
        raise CaptureError(f"{search.why['']}; nor can a part of it be captured: {told}")


def unfit(calls: Mapping[str, Calls], path: str) -> str:
    """Return why a module can't be an island, by its calls; "" where nothing speaks against it."""
    own = calls.get(path)
    if own is None:
        return "it is not called as a module"
    if not all(own.forms[0].like(form) for form in own.forms):
        return f"it is called in {len(own.forms)} ways, with other arguments each"
    others = [leaf for leaf in own.forms[0].leaves if not isinstance(leaf, (*_CONSTANTS, tuple))]
    if others:
        return f"it is given a {type(others[0]).__name__}, which is neither a tensor nor a constant"
    if not any(isinstance(leaf, tuple) for leaf in own.forms[0].leaves):
        return "it is given no tensor"
    inner = (each for each in calls if each.startswith(f"{path}."))
    outside = next((each for each in inner if any(path not in around for around in calls[each].around)), None)
    return f"{outside}, which lies in it, is called from outside" if outside else ""


def _beside(
    search: _Search, modules: Mapping[str, nn.Module]
) -> tuple[SideBySide, tuple[()], dict[str, Any], Any]:
    """Return what captures modules side by side: a module that calls them, its arguments, and their dynamic shapes."""
    taken: set[str] = set()
    islands = {path: _island(path, search.calls[path], taken) for path in modules}
    given, shapes = dict[str, Any](), dict[str, Any]()
    for path, island in islands.items():
        calls = search.calls[path]
        given |= dict(zip(island.inputs, island.tensors(*calls.first), strict=True))
        shapes |= dict(zip(island.inputs, _varying(calls), strict=True))
    dynamic: Any = True if search.dynamic else shapes if any(shapes.values()) else None
    return SideBySide(modules, islands), (), given, dynamic


def _varying(calls: Calls) -> list[dict[int, Any] | None]:
    """Return AUTO for those dimensions of each tensor that differ between the calls; None for a tensor without one."""
    found: list[dict[int, Any] | None] = []
    for leaves in zip(*(form.leaves for form in calls.forms), strict=True):
        if isinstance(leaves[0], tuple):
            sizes = [{leaf[0][dim] for leaf in leaves} for dim in range(len(leaves[0][0]))]
            found.append({dim: Dim.AUTO for dim, each in enumerate(sizes) if len(each) > 1} or None)
    return found


def _island(path: str, calls: Calls, taken: set[str]) -> Island:
    """Return how an island is called; its inputs are named after its path and its arguments."""
    bound = bound_arguments(calls.signature, *calls.first)
    leaves = pytree.tree_leaves_with_path(bound)
    named = {
        place: _input_name(path, pytree.keystr(key), taken)
        for place, (key, leaf) in enumerate(leaves)
        if isinstance(leaf, Tensor)
    }
    constants = {place: leaf for place, (_, leaf) in enumerate(leaves) if place not in named}
    spec = pytree.tree_structure(bound)
    return Island(path, calls.signature, spec, tuple(named.values()), constants, len(calls.forms))


def _input_name(path: str, key: str, taken: set[str]) -> str:
    """Return a free identifier made of a module's path and the place of an argument."""
    name = "_".join(re.findall(r"\w+", f"{path} {key}"))
    found = free_name(name if name.isidentifier() else f"part_{name}", taken)
    taken.add(found)
    return found


class SideBySide(nn.Module):
    """Modules of a model under the names that they have in it, each called on inputs of its own."""

    def __init__(self, modules: Mapping[str, nn.Module], islands: Mapping[str, Island]) -> None:
        super().__init__()
        for path, module in modules.items():
            _place(self, path, module)

        def forward(**inputs: Tensor) -> dict[str, Any]:
            calls = {path: island.call(inputs) for path, island in islands.items()}
            return {path: modules[path](*args, **kwargs) for path, (args, kwargs) in calls.items()}

        self.islands = islands
        names = [name for island in islands.values() for name in island.inputs]
        keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        forward.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        self.forward = forward  # torch.export reads the names of the inputs from its signature


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module under a dotted path, with plain modules on the way."""
    *way, last = path.split(".")
    for name in way:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


def _together(search: _Search, inputs: CallInputs) -> Program:
    """Capture the chosen modules as one Program."""
    wrapper, args, kwargs, dynamic = _beside(search, search.chosen)
    program = search.capture(wrapper, args, kwargs, dynamic)
    names = dict(zip(kwargs, [node.name for node in program.placeholders()], strict=True))
    parts = {
        path: replace(island, inputs=tuple(names[name] for name in island.inputs))
        for path, island in wrapper.islands.items()
    }
    program = program.replace(islands=Islands(search.model, *inputs, parts))
    for path, island in parts.items():
        found = connected_nodes(program, island, island_results(program, path)[0])
        foreign = [
            node.name for node in program.placeholders() if node in found and node.name not in island.inputs
        ]
        if foreign:
            raise CaptureError(
                f"{path} computes with {foreign[0]}, an input of another part: name one of them in within="
            )
    return program


def faults_in_model(program: Program) -> dict[str, str]:
    """Return the islands with which a model is no longer itself, as they are in its place, with the difference; none where it is.

    CaptureError where only all of them together make it another.
    """
    islands = program.islands
    assert islands is not None
    if not _fault_in_model(program):
        return {}
    alone = {
        path: program.replace(islands=replace(islands, parts={path: islands.parts[path]}))
        for path in islands.parts
    }
    faults = {path: _fault_in_model(each) for path, each in alone.items()}
    found = {path: why for path, why in faults.items() if why}
    if not found:
        raise CaptureError(
            f"with all parts in place, {_fault_in_model(program)}: name some of them in within="
        )
    return found


def _fault_in_model(program: Program) -> str:
    """Return how a model with its islands in place differs from itself; "" where it doesn't."""
    islands = program.islands
    assert islands is not None
    model, inputs = islands.model, (islands.args, islands.kwargs)
    wanted = outputs_on(model, inputs)
    try:
        got = outputs_on(in_model(program), inputs)
    except Exception as error:  # noqa: BLE001 - the model's own code may do anything with the island
        return f"the model can't run with it in place: {describe_error(error)}"
    gap = difference(comparable(got), comparable(wanted))
    if gap <= SAME or is_random(wanted, outputs_on(model, inputs, 1)):
        return ""
    return f"the model differs from itself by {gap:.2g} with it in place"


def _described(program: Program, why: Mapping[str, str]) -> Program:
    """Return the program with the reasons of what stays outside, and with notes on both sides."""
    assert program.islands is not None
    islands = replace(program.islands, outside=dict(why))
    return program.replace(notes=(*program.notes, *islands.notes()), islands=islands)
