"""ONNX forms of operators that torch's exporter has none for: one function each, traced by onnxscript; and its own forms, kept."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from fxprune.export.onnx_forms.decompositions import decompose


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
_DECOMPOSITIONS: dict[tuple[frozenset[Any], int], Any] = {}


@contextmanager
def quick_export() -> Iterator[None]:
    """Context in which `torch.onnx.export` keeps its table of forms between files, and matches each pattern at nodes of its operator alone.

    It reads the source of 480 functions for the table each time, half of the time of a small file; its clean-up lists all nodes of the
    graph for each node and each pattern of several results, half of the time of a file of 30 layers; and it traces the whole graph anew
    for the few nodes that it decomposes (`onnx_forms.decompositions`), two thirds of what is left; and it computes every value once more to
    see which types are promoted, a fifth of the rest. What is written is the same, but for sizes that are read off another value. Where a
    version of a library has other parts, it is left alone.
    """
    with _forms_kept(), _matching_by_operator(), _decomposing_in_place(), _promoting_by_known_values():
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
def _decomposing_in_place() -> Iterator[None]:
    """Let the exporter decompose nodes one by one where that is possible."""
    passes = _module("torch.onnx._internal.exporter._fx_passes")
    tables = _module("torch.onnx._internal.exporter._decomp")
    kept = getattr(_module("torch._export.utils"), "_is_preservable_cia_op", None)
    original = getattr(passes, "decompose_with_registry", None)
    if original is None or tables is None or kept is None:
        yield
        return

    def decomposed(exported: Any, registry: Any) -> Any:
        formed = frozenset(tables.get_onnx_implemented_overloads(registry))
        key = formed, len(torch._C._dispatch_get_all_op_names())
        if key not in _DECOMPOSITIONS:
            _DECOMPOSITIONS[key] = tables.create_onnx_friendly_decomposition_table(set(formed))
        done = decompose(exported, _DECOMPOSITIONS[key], kept)
        return exported if done else original(exported, registry)

    with patch.object(passes, "decompose_with_registry", decomposed):
        yield


@contextmanager
def _promoting_by_known_values() -> Iterator[None]:
    """Let the exporter take the values that nodes are known to have, where it promotes types; nodes that it changes are computed."""
    types = _module("torch.onnx._internal.fx.passes.type_promotion")
    kind, rule_of = (
        getattr(types, "_TypePromotionInterpreter", None),
        getattr(types, "get_type_promotion_rule", None),
    )
    if kind is None or rule_of is None:
        yield
        return
    original = kind.run_node

    def run_node(self: Any, node: fx.Node) -> Any:
        if node.op != "call_function" or not isinstance(node.meta.get("val"), FakeTensor):
            return original(self, node)
        rule = rule_of(node, self.type_promotion_table)
        if rule:
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    with patch.object(kind, "run_node", run_node):
        yield


def _class_of(module: str, name: str) -> Any:
    """Return a class of another library's inner module; None where this version has none."""
    return getattr(_module(module), name, None)


def _module(name: str) -> Any:
    """Return another library's inner module; None where this version has none."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
