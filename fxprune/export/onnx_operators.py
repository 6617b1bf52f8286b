"""ONNX forms of operators that torch's exporter has none for: one function each, traced by onnxscript; and its own forms, kept."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


def translations() -> dict[Any, Callable[..., Any]]:
    """Return operator → its ONNX form, as `torch.onnx.export` takes them; those of packages that are not loaded are left out."""
    rows = {"aten::_grouped_mm": _grouped_mm, "transformers::grouped_mm_fallback": _grouped_mm}
    found = {}
    for name, form in rows.items():
        namespace, operator = name.split("::")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if packet is not None:
            found[packet.default] = form
    return found


def _grouped_mm(input: Any, weight: Any, offs: Any, bias: Any = None, out_dtype: Any = None) -> Any:  # noqa: A002
    """Multiply the rows up to each offset by one matrix of a stack: a slice and a product for each.

    No row is multiplied twice, and an expert that has no row costs nothing.
    """
    from onnxscript import opset18

    op: Any = opset18  # its stubs know no traced values
    first, end, parts = op.Constant(value_ints=[0]), op.Constant(value_ints=[0]), []
    ends = op.Cast(offs, to=7)
    for expert in range(weight.shape[0]):
        start, end = end, op.Gather(ends, op.Constant(value_ints=[expert]), axis=0)
        matrix = op.Gather(weight, op.Constant(value_int=expert), axis=0)
        parts.append(op.MatMul(op.Slice(input, start, end, first), matrix))
    return op.Concat(*parts, axis=0)


_TABLES: dict[tuple[int, int], Any] = {}
_LOOKED_UP: set[int] = set()


@contextmanager
def quick_export() -> Iterator[None]:
    """Context in which `torch.onnx.export` keeps its table of forms between files, and matches each pattern at nodes of its operator alone.

    It reads the source of 480 functions for the table each time, half of the time of a small file; and its clean-up lists all nodes of
    the graph for each node and each pattern of several results, half of the time of a file of 30 layers. What is written is the same.
    Where a version of a library has other parts, it is left alone.
    """
    with _forms_kept(), _matching_by_operator(), _composites_listed_once():
        yield


@contextmanager
def _forms_kept() -> Iterator[None]:
    kind = _class_of("torch.onnx._internal.exporter._registration", "ONNXRegistry")
    original = getattr(kind, "from_torchlib", None)
    if original is None:
        yield
        return

    def known(*args: Any, **options: Any) -> Any:
        if args or options.keys() != {"opset_version"}:
            return original(*args, **options)
        key = (
            options["opset_version"],
            len(torch._C._dispatch_get_all_op_names()),
        )  # packages declare operators
        if key not in _TABLES:
            _TABLES[key] = original(**options)
        return _copied(_TABLES[key])

    with patch.object(kind, "from_torchlib", staticmethod(known)):
        yield


def _copied(table: Any) -> Any:
    """Return a table of the same forms, to which others can be added."""
    made = type(table)()
    made.__dict__ |= table.__dict__
    made.functions = {name: list(forms) for name, forms in table.functions.items()}
    return made


@contextmanager
def _matching_by_operator() -> Iterator[None]:
    """Let a pattern of several results, which begins at a node, not look further where that node has another operator."""
    kind = _class_of("onnxscript.rewriter._matcher", "SimplePatternMatcher")
    result = _class_of("onnxscript.rewriter._basics", "MatchResult")
    original = getattr(kind, "match", None)
    if original is None or result is None:
        yield
        return

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if not self.pattern.has_single_output_node:
            wanted = self.pattern.output_nodes[0].op_identifier()
            if wanted is not None and wanted != node.op_identifier():
                return result().fail("another operator")
        return original(self, model, graph, node, **options)

    with patch.object(kind, "match", match):
        yield


@contextmanager
def _composites_listed_once() -> Iterator[None]:
    """Look all composite operators up once, and again where packages have declared others; torch does so for each of 56 namespaces."""
    try:
        utils = importlib.import_module("torch._export.utils")
        original = utils._materialize_cpp_cia_ops
    except (ImportError, AttributeError):
        yield
        return

    def looked_up() -> None:
        names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if len(names) not in _LOOKED_UP:
            original()
            _LOOKED_UP.add(len(names))

    with patch.object(utils, "_materialize_cpp_cia_ops", looked_up):
        yield


def _class_of(module: str, name: str) -> Any:
    """Return a class of another library's inner module; None where this version has none."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
