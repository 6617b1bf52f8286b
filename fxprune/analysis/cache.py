"""Cache of a function of a program: the result is kept with the program, as long as all that it was computed from is the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from operator import is_
from typing import Any, TypeVar

from torch import Tensor

from fxprune.ir import Program, attribute, storage_key, trees
from fxprune.rules import REFUSED, RULES
from fxprune.rules.traits import TRAITS

R = TypeVar("R")


def per_program(function: Callable[[Program], R]) -> Callable[[Program], R]:
    """Return a function that computes once for a program, and again after its graph, its tensors or the tables of rules and traits changed.

    The function must read no values of tensors but those of integers, and nobody may edit its result.
    """

    @wraps(function)
    def kept(program: Program) -> R:
        objects, tensors = _sources(program)
        before, result = program._results.get(function, (((), ()), None))
        if tensors != before[1] or len(objects) != len(before[0]) or not all(map(is_, objects, before[0])):
            result = function(program)
            program._results[function] = ((objects, tensors), result)
        found: R = result
        return found

    return kept


def _sources(program: Program) -> tuple[list[Any], list[Any]]:
    """Return what an analysis reads: objects, to be compared by identity, and the memory and type of tensors."""
    tables = (RULES, REFUSED, TRAITS)
    objects: list[Any] = [each for table in tables for each in (*table, *table.values())]
    objects.append(trees(program.graph_module))
    tensors: list[Any] = []
    for node in program.graph.nodes:
        # `args` and `kwargs` are immutable: an edit in place gives a node other ones.
        objects += (node, node.name, node.target, node.args, node.kwargs, node.meta.get("val"))
        if node.op == "get_attr":
            value = attribute(program.graph_module, str(node.target))
            objects.append(value)
            tensors += [_identity(value)] if isinstance(value, Tensor) else []
    return objects, tensors


def _identity(value: Tensor) -> tuple[Any, ...]:
    """Return the memory and type of a tensor, and how often it was written into where it contains integers."""
    counted = not (value.is_floating_point() or value.is_complex() or value.is_inference())
    return storage_key(value), value.shape, value.dtype, value._version if counted else 0
