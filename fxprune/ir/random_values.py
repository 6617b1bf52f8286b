"""Random operators: which nodes of a program draw, and what they draw in a run with a given seed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.ir.arguments import bind
from fxprune.ir.compare import relative_difference
from fxprune.ir.interpreter import Recorder
from fxprune.ir.program import Program, source_line


def may_draw(node: fx.Node) -> bool:
    """Return whether an operator may draw: torch's tag says so, or attention has dropout; not dropout that is off."""
    if node.op != "call_function":
        return False
    given = {name: argument.value for name, argument in bind(node).items()}
    if "dropout_p" in given:
        return bool(given["dropout_p"] != 0)
    return given.get("train") is not False and torch.Tag.nondeterministic_seeded in getattr(
        node.target, "tags", ()
    )


def random_nodes(program: Program) -> dict[str, fx.Node]:
    """Return the nodes that draw, by name: those that may, and whose values differ between two seeds, for the same operands."""
    marked = {node for node in program.graph.nodes if may_draw(node)}
    if not marked or any(value.is_meta for value in program.tensors().values()):
        return {}
    run = _Redrawing(program, marked)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        run.run_flat(program.flat_inputs())
    return {node.name: node for node in program.graph.nodes if node in run.drawing}


class _Redrawing(Recorder):
    """A run that computes each marked node twice, with two seeds, and keeps those whose values differ in `drawing`."""

    def __init__(self, program: Program, marked: Collection[fx.Node]) -> None:
        super().__init__(program, ())
        self.marked, self.drawing = marked, set[fx.Node]()

    def compute(self, node: fx.Node) -> Any:
        if node not in self.marked:
            return super().compute(node)
        values = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            value = super().compute(node)
            values.append(
                pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)
            )
        if not _same(*values):
            self.drawing.add(node)
        return value


def recorded(
    program: Program, names: Collection[str], inputs: list[Any], seed: int = 0
) -> tuple[list[Any], dict[str, Any]]:
    """Return the outputs, flat, and the values of some nodes by name, of a run on flat inputs with a seed."""
    recorder = Recorder(program, set(names), copies=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        outputs = recorder.run_flat(inputs)
    return pytree.tree_leaves(outputs), {node.name: value for node, value in recorder.values.items()}


def random_notes(program: Program) -> tuple[str, ...]:
    """Return a note where a program draws although it is in evaluation, else none."""
    drawing = list(random_nodes(program).values())
    more = f", and {len(drawing) - 1} more such operators" if len(drawing) > 1 else ""
    note = (
        f"the model {describe_draw(drawing[0])}{more} in evaluation: it is compared at the same values"
        if drawing
        else ""
    )
    return (note,) if note else ()


def describe_draw(node: fx.Node) -> str:
    """Return the operator of a node that draws, and its source line where it has one."""
    line = source_line(node)
    return f"draws random numbers ({node.target}{f' at {line}' if line else ''})"


def _same(one: object, other: object) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(relative_difference(a, b) == 0 if isinstance(a, Tensor) else a == b for a, b in pairs)
