"""Random values of a file are made inputs of a twin, so that a runtime computes with the same ones as the program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.errors import ExportError
from fxprune.ir import Program, operands
from fxprune.ir.random_values import describe_draw, random_nodes
from fxprune.rules import traits_of

_DRAWING = frozenset(
    (
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "Dropout",
    )
)
"""ONNX operators that draw; Dropout outside of training is removed by the exporter."""

_READING = frozenset(("Bernoulli", "Dropout"))
"""Those whose first input is the first operand of torch's operator: what it holds is compared too, since a draw hides it."""


@dataclass(frozen=True)
class Draws:
    """Values that a file takes as inputs (node of the program that draws → its name there), and nodes returned after its own outputs."""

    given: Mapping[str, str] = field(default_factory=dict)
    returned: tuple[str, ...] = ()


NONE = Draws()


@contextlib.contextmanager
def fixed_draws(program: Program, file: Path) -> Iterator[tuple[Path, Draws]]:
    """Yield the file, or where the program draws, its twin beside it, which takes the drawn values as inputs.

    ExportError where the twin can't be made: then nothing can be proven about the file.
    """
    import onnx

    drawing = random_nodes(program)
    if not drawing:
        yield file, NONE
        return
    model = onnx.load(file, load_external_data=False)
    draws = _open(model.graph, drawing)
    twin = file.with_name(f"{file.stem}.draws-given.onnx")
    try:
        onnx.save(model, twin)
        yield twin, draws
    finally:
        twin.unlink(missing_ok=True)


def _open(graph: Any, drawing: Mapping[str, fx.Node]) -> Draws:
    """Make drawn values inputs of an ONNX graph, and what the draws read outputs."""
    import onnx

    given, read = {}, dict[str, tuple[str, int]]()
    for node, made, value in _counterparts(graph, drawing.values()):
        read = _read(node, made) | read
        made.output[list(made.output).index(value)] = ""
        graph.input.append(onnx.helper.make_tensor_value_info(value, _type(node), None))
        given[node.name] = value
    graph.output.extend(
        onnx.helper.make_tensor_value_info(value, kind, None) for value, kind in read.values()
    )
    _drop_dead(graph)
    left = [node for node in _all(graph) if node.op_type in _DRAWING]
    if left:
        raise _unproven(next(iter(drawing.values())), f"{left[0].op_type} of the file still draws")
    return Draws(given, tuple(read))


def _counterparts(graph: Any, drawing: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, Any, str]]:
    """Yield each node that draws with the node of the file that gives its value, and the value's name there.

    torch's exporter keeps the names of nodes; dropout, which it takes apart, is found by its order. A wrong pair would show a difference.
    """
    made = {value: node for node in graph.node for value in node.output}
    dropouts = (node for node in list(graph.node) if node.op_type == "Dropout")
    for node in drawing:
        found = next(dropouts, None) if traits_of(node.target).passes == "dropout" else made.get(node.name)
        if found is None:
            raise _unproven(node, "the file has no value of its name")
        yield node, found, found.output[0] if found.op_type == "Dropout" else node.name


def _read(node: fx.Node, made: Any) -> dict[str, tuple[str, int]]:
    """Return what a draw depends on by value: node of the program → (value of the file, its type)."""
    sources = [source for source in operands(node) if isinstance(source.meta.get("val"), Tensor)]
    if made.op_type not in _READING:
        if sources and not traits_of(node.target).shape_only:
            raise _unproven(node, "what it draws depends on other values, which a check would not see")
        return {}
    return {sources[0].name: (made.input[0], _type(sources[0]))}


def _type(node: fx.Node) -> int:
    import onnx

    example = torch.empty(0, dtype=node.meta["val"].dtype).numpy()
    return onnx.helper.np_dtype_to_tensor_dtype(example.dtype)


def _drop_dead(graph: Any) -> None:
    """Remove the nodes of an ONNX graph that nothing reads any more."""
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            kept.append(node)
            read |= {*node.input} | {
                value for inner in _inner(node) for each in _all(inner) for value in each.input
            }
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _all(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of the graphs within them."""
    for node in graph.node:
        yield node
        for inner in _inner(node):
            yield from _all(inner)


def _inner(node: Any) -> list[Any]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _unproven(node: fx.Node, why: str) -> ExportError:
    return ExportError(
        f"nothing proven about the file: the program {describe_draw(node)}, and {why};"
        " switch it off in evaluation, or draw outside of the model and give the values as an input"
    )
