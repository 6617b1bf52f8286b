"""Cache of a function of a program: the result is kept with the program, as long as all that it was computed from is the same."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

from fxprune.ir import Program, attribute, storage_key, trees
from fxprune.rules import REFUSED, RULES

R = TypeVar("R")


def per_program(function: Callable[[Program], R]) -> Callable[[Program], R]:
    """Return a function that computes once for a program, and again after its graph, its tensors or the table of rules changed.

    The function must read no values of tensors, which are not compared, and nobody may edit its result.
    """

    @wraps(function)
    def kept(program: Program) -> R:
        now = _sources(program)
        before, result = program._results.get(function, (None, None))
        if before is None or not _same(before, now):
            result = function(program)
            program._results[function] = (now, result)
        return result  # type: ignore[return-value]  # one result for a function, of its own type

    return kept


Sources = tuple[list[Any], list[Any]]
"""What an analysis is computed from: objects, compared by identity, and the memory and sizes of tensors, compared by value."""


def _sources(program: Program) -> Sources:
    objects: list[Any] = [*RULES, *RULES.values(), *REFUSED, *REFUSED.values(), trees(program.graph_module)]
    tensors: list[Any] = []
    for node in program.graph.nodes:
        # An edit in place gives a node other arguments: `args` and `kwargs` are immutable.
        objects += (node, node.name, node.target, node.args, node.kwargs, node.meta.get("val"))
        if node.op == "get_attr":
            value = attribute(program.graph_module, str(node.target))
            objects.append(value)
            tensors += [(storage_key(value), value.shape, value.dtype)] if isinstance(value, Tensor) else []
    return objects, tensors


def _same(one: Sources, other: Sources) -> bool:
    if len(one[0]) != len(other[0]) or one[1] != other[1]:
        return False
    return all(map(operator.is_, one[0], other[0]))
