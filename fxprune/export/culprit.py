"""Culprit of a file that could not be written or is wrong: the operator, the user's line, and whether torch's own export fails, too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.errors import ExportError
from fxprune.export.agreement import BAR, DifferenceError, compare
from fxprune.export.exported_program import for_onnx, lift
from fxprune.ir import (
    Program,
    copy_graph,
    example_point,
    feeds,
    inference,
    innermost_reason,
    quiet,
    rebuild,
    source_line,
)
from fxprune.ir.compare import relative_difference
from fxprune.ir.interpreter import Recorder
from fxprune.runtimes import open_session
from fxprune.runtimes.onnxruntime import run_session

_EXPORTER = "torch.onnx."


def describe_place(node: fx.Node) -> str:
    """Return a node's operator and the user's line."""
    line = source_line(node)
    return f"{node.target} [{line}]" if line else str(node.target)


def failing_operator(error: BaseException) -> str:
    """Return the operator and line of the node that torch's exporter was at when it failed; "" where it was at none."""
    nodes = [node for each in _chain(error) for node in _exported_nodes(each)]
    return describe_place(nodes[-1]) if nodes else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _exported_nodes(error: BaseException) -> Iterator[fx.Node]:
    """Yield the nodes that the exporter's functions held, the innermost last."""
    trace = error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith(_EXPORTER) and isinstance(
            node, fx.Node
        ):
            yield node
        trace = trace.tb_next


def first_difference(program: Program, opset: int) -> str:
    """Return the operator and line of the first value that differs in a file of all values; "" where there is none, or no such file."""
    whole, nodes = _returning_all(program)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = _plain_file(whole, Path(folder), opset)
            found = run_session(open_session(file), feeds(whole, example_point(whole)))
    except ExportError:
        return ""
    run = Recorder(whole, copies=True)
    with inference():
        run.run_flat(whole.flat_inputs())
    expected = {node.name: value for node, value in run.values.items()}
    for node, value in zip(nodes, found, strict=True):
        if not _agrees(expected[node.name], torch.tensor(value)):
            return describe_place(node)
    return ""


def _agrees(expected: Tensor, found: Tensor) -> bool:
    same = (expected.shape, expected.dtype) == (found.shape, found.dtype)
    return same and relative_difference(found, expected) <= BAR


def _returning_all(program: Program) -> tuple[Program, list[fx.Node]]:
    """Return the program with the values of all its operators as outputs, and their nodes."""
    graph = copy_graph(program)
    nodes = [node for node in graph.nodes if node.op == "call_function" and _is_real(node.meta.get("val"))]
    graph.output_node().args = (tuple(nodes),)
    codegen: Any = graph._codegen
    plain = pytree.tree_structure((0,) * len(nodes))
    graph.set_codegen(type(codegen)(codegen.pytree_info._replace(out_spec=plain)))
    return rebuild(program, graph, {}), nodes


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_complex()


def _plain_file(program: Program, folder: Path, opset: int) -> Path:
    """Write a program as torch does, without forms of ours; ExportError with the operator at which that fails."""
    try:
        with quiet(), inference():
            made = torch.onnx.export(
                for_onnx(lift(program)),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=program.input_names(),
            )
            assert made is not None
            made.save(folder / "plain.onnx", external_data=False)
    except Exception as error:
        at = failing_operator(error)
        raise ExportError(f"{innermost_reason(error)}{at and f', at {at}'}") from error
    return folder / "plain.onnx"


def original_fault(program: Program, opset: int) -> str:
    """Say whether torch's own export of a program is right, and if not, why and at which operator."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            opened = open_session(_plain_file(program, Path(folder), opset))
            compare(program, lambda given: run_session(opened, given), [example_point(program)])
    except DifferenceError as error:
        at = first_difference(program, opset)
        return f"torch's own export of the unpruned model is wrong, too{at and f', at {at}'}: {error}"
    except ExportError as error:
        return f"torch's own export of the unpruned model fails, too: {error}"
    return "torch's own export of the unpruned model is right: this is a fault of fxprune, please report it"
