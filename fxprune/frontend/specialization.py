"""Specialization: the guards that torch.export put on a program's input sizes, read from it under the names of the inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.exported_program import _convert_guards_to_code
from torch.fx.experimental.symbolic_shapes import ShapeGuardPythonPrinter
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError
from fxprune.ir import guards
from fxprune.ir.guards import Guard, condition, range_guards, shape_guards

_NOBODYS = (str(Path(torch.__file__).parent), str(Path(guards.__file__)))
"""Files of which a line tells a user nothing: torch's, and the check that exports of a Program go through."""


def exported_guards(
    exported: ExportedProgram, module: fx.GraphModule, inputs: tuple[tuple[Any, ...], Mapping[str, Any]]
) -> tuple[Guard, ...]:
    """Return the guards of an exported program; `module` is its graph as a module, and `inputs` call it."""
    return _named(exported._guards_code, module, inputs, _places(exported.graph))


def module_guards(
    module: fx.GraphModule, inputs: tuple[tuple[Any, ...], Mapping[str, Any]]
) -> tuple[Guard, ...]:
    """Return the guards of a module that `ExportedProgram.module()` made, in the process that exported it."""
    return _named(_convert_guards_to_code(module), module, inputs, _places(module.graph))


def _named(
    texts: list[str], module: fx.GraphModule, inputs: tuple[Any, Any], places: Mapping[str, str]
) -> tuple[Guard, ...]:
    """Return guards whose inputs have the names of placeholders in place of their paths in the arguments."""
    bound = inspect.signature(module.forward).bind(*inputs[0], **inputs[1]).arguments
    paths = [path for path, _ in pytree.tree_leaves_with_path(bound, is_leaf=lambda value: value is None)]
    names = [node.name for node in module.graph.find_nodes(op="placeholder")]
    known = {f"L{pytree.keystr(path)}": name for path, name in zip(paths, names, strict=True)}
    known |= {f"L['flat_args'][{place}]": name for place, name in enumerate(names)}
    read = (Guard(_renamed(text, known), places.get(text, "")) for text in dict.fromkeys(texts))
    nodes = module.graph.find_nodes(op="placeholder")
    relations = (guard for guard in shape_guards(nodes) if len(guard.sizes) > 1)
    return tuple({guard.text: guard for guard in (*relations, *range_guards(nodes), *read)}.values())


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Return a guard's text with the inputs' names; CaptureError where it can't be read."""
    made = text.replace("\n", " ")
    for number, path in enumerate(sorted(names, key=len, reverse=True)):
        made = made.replace(path, f"L[{number}]")  # a number first: a name may look like another path
    for number, path in enumerate(sorted(names, key=len, reverse=True)):
        made = made.replace(f"L[{number}]", f"L[{names[path]!r}]")
    try:
        condition(made)
    except (ValueError, SyntaxError) as error:
        raise CaptureError(
            f"torch.export made the graph for inputs with {text!r} only, which fxprune can't check ({error}); export it with fixed sizes"
        ) from error
    return made


def _places(graph: fx.Graph) -> dict[str, str]:
    """Return the user's line of guards, by their text, where torch remembers it: not after a file was loaded."""
    env = _shape_env(graph)
    if env is None:
        return {}
    sources = env.var_to_sources
    printer = ShapeGuardPythonPrinter(sources, lambda source: source.name, sources)
    found: dict[str, str] = {}
    for guard in env.guards:
        frame = guard.sloc.framework_loc
        known = isinstance(frame, FrameSummary) and guard.expr.free_symbols <= sources.keys()
        if known and not frame.filename.startswith(_NOBODYS):
            line = f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"
            found[printer.doprint(guard.expr)] = line
    return found


def _shape_env(graph: fx.Graph) -> Any:
    modes = (getattr(node.meta.get("val"), "fake_mode", None) for node in graph.nodes)
    return next((mode.shape_env for mode in modes if mode is not None), None)
