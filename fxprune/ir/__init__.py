"""The data that everything works on: Program, Selection, and primitive edits of a graph."""

from fxprune.ir.arguments import bind, hint, operands, shape_of
from fxprune.ir.compare import TOLERANCES, difference, run_example, tolerance
from fxprune.ir.edit import add_parameter, call
from fxprune.ir.example_inputs import Feeds, Point, example_point, feeds, point_with
from fxprune.ir.program import (
    Program,
    attribute,
    copy_graph,
    is_free,
    rebuild,
    set_attribute,
    source_line,
    trees,
)
from fxprune.ir.selection import Selection
from fxprune.ir.summary import HasSummary, Summary, quantity
from fxprune.ir.tensors import like, storage_key
from fxprune.ir.torch_context import describe_error, first_line, inference, innermost_reason, quiet

__all__ = [
    "TOLERANCES",
    "Feeds",
    "HasSummary",
    "Point",
    "Program",
    "Selection",
    "Summary",
    "add_parameter",
    "attribute",
    "bind",
    "call",
    "copy_graph",
    "describe_error",
    "difference",
    "example_point",
    "feeds",
    "first_line",
    "hint",
    "inference",
    "innermost_reason",
    "is_free",
    "like",
    "operands",
    "point_with",
    "quantity",
    "quiet",
    "rebuild",
    "run_example",
    "set_attribute",
    "shape_of",
    "source_line",
    "storage_key",
    "tolerance",
    "trees",
]
