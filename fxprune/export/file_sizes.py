"""Sizes in an ONNX file: the names of dynamic ones, and numbers for those that can't vary there.

A file holds no conditions: a size that a guard reads is a number in it, unless the guard is loose (see `fxprune.frontend.other_sizes`), and
so is one that the exporter itself took for a number, which torch writes as a name ("14").
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fxprune.ir import Program, example_point
from fxprune.ir.example_inputs import dynamic_axis_names
from fxprune.ir.guards import Guard

_REMEMBERING = ("_inner_evaluate_expr", "_maybe_guard_rel")
"""Methods by which torch remembers what it has found of a symbol, and would not find it again."""


@contextmanager
def symbols_kept(program: Program) -> Iterator[None]:
    """Undo what happens to the program's symbolic sizes: an exporter that fixes one would fix it in every program of the same capture."""
    modes = (getattr(node.meta.get("val"), "fake_mode", None) for node in program.placeholders())
    env = next((mode.shape_env for mode in modes if mode is not None and mode.shape_env is not None), None)
    if env is None:
        yield
        return
    kept = {
        name: copy.copy(value) for name, value in vars(env).items() if isinstance(value, (dict, list, set))
    }
    try:
        yield
    finally:
        vars(env).update(kept)
        env._version_counter += 1
        env._replacements_version_counter += 1
        for name in _REMEMBERING:
            getattr(ShapeEnv, name).cache_clear()


def strict_guards(program: Program) -> dict[str, Guard]:
    """Return the dynamic axes that a guard fixes in a file, each with the guard."""
    names = dynamic_axis_names(program)
    found: dict[str, Guard] = {}
    for guard in program.input_guards():
        for name, dim in guard.sizes:
            if not guard.loose and dim in names.get(name, {}):
                found.setdefault(names[name][dim], guard)
    return found


def name_sizes(program: Program, made: Any, strict: Collection[str]) -> None:
    """Write the names of the program's dynamic axes into an exported model, and numbers for the `strict` ones and all that can't vary."""
    model = made.model
    symbols = _symbols(program, model.graph.inputs)
    here = example_point(program)
    values = [
        *model.graph.inputs,
        *model.graph.outputs,
        *(o for n in model.graph.all_nodes() for o in n.outputs),
    ]
    for value in values:
        for place, dim in enumerate(value.shape or ()):
            name = getattr(dim, "value", None)
            if isinstance(name, str) and name.isdigit():
                value.shape[place] = int(name)
            elif symbols.get(name) in strict:
                value.shape[place] = here[symbols[name]]
    made.rename_axes({symbol: axis for symbol, axis in symbols.items() if axis not in strict})


def _symbols(program: Program, graph_inputs: Sequence[Any]) -> dict[Any, str]:
    """Map torch's symbols (s72) to axis names (batch); the first place where a symbol occurs gives the name."""
    names = dynamic_axis_names(program)
    found: dict[Any, str] = {}
    for value in graph_inputs:
        for dim, axis in names.get(value.name, {}).items():
            symbol = getattr(value.shape[dim], "value", None)
            if isinstance(symbol, str) and not symbol.isdigit():
                found.setdefault(symbol, axis)
    return found


def fixed_in_file(program: Program, dims: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return the dynamic axes of a program that are numbers in its file, with the reason; `dims` are the file's inputs."""
    strict, here = strict_guards(program), example_point(program)
    fixed = {
        axis
        for name, axes in dynamic_axis_names(program).items()
        for dim, axis in axes.items()
        if name in dims and isinstance(dims[name][dim], int)
    }
    other = "torch's exporter wrote an operator for this size"
    return {
        axis: f"{axis} is {here[axis]} in the file: "
        + (f"the graph holds only for {strict[axis]}" if axis in strict else other)
        for axis in sorted(fixed)
    }
