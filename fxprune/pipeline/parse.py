"""Parse a pipeline from its text.

The text is a Python expression list, read with `ast` and never evaluated.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from fxprune.errors import PipelineError
from fxprune.pipeline.base import Pass, options_of
from fxprune.pipeline.run import Pipeline

_SHOWN = 120  # characters of a pipeline, on either side of the place


def parse_passes(text: str, table: Mapping[str, type[Pass]]) -> Pipeline:
    """Parse a pipeline's text, with the passes of a table; PipelineError marks the place with a caret and lists what was possible."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise _error(text.strip(), (error.offset or 1) - 1, f"can't read the pipeline: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError) as error:
        why = (
            "nested too deeply" if not isinstance(error, ValueError) else "it has characters that are no text"
        )
        raise PipelineError(f"can't read the pipeline: {why}: {text[:80]!r}") from None
    items = tree.elts if isinstance(tree, ast.Tuple) else [tree]
    return Pipeline(tuple(_parse_pass(text.strip(), item, table) for item in items))


def _error(text: str, column: int, message: str) -> PipelineError:
    first = max(0, column - _SHOWN)
    shown = text[first : column + _SHOWN].replace("\n", " ")
    return PipelineError(f"{message}\n  {shown}\n  {' ' * (column - first)}^")


def _parse_pass(text: str, item: ast.expr, table: Mapping[str, type[Pass]]) -> Pass:
    function = item.func if isinstance(item, ast.Call) else item
    if not isinstance(function, ast.Name):
        raise _error(text, item.col_offset, "expected a pass such as heads(ratio=0.25)")
    found = table.get(function.id)
    if found is None:
        near = difflib.get_close_matches(function.id, table, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise _error(text, item.col_offset, f"no pass {function.id!r}{hint}; passes: {', '.join(table)}")
    options = _options(text, item, found) if isinstance(item, ast.Call) else {}
    missing = [
        f.name for f in options_of(found) if f.default is dataclasses.MISSING and f.name not in options
    ]
    if missing:
        raise _error(
            text, item.col_offset, f"{found.name} needs {missing[0]}, as in {found.name}({missing[0]}=…)"
        )
    try:
        return found(**{name: value for name, (value, _) in options.items()})
    except PipelineError as error:
        column = next((c for name, (_, c) in options.items() if name in str(error)), item.col_offset)
        raise _error(text, column, str(error)) from None


def _options(text: str, item: ast.Call, found: type[Pass]) -> dict[str, tuple[Any, int]]:
    """Return option values with their columns in the text, by name."""
    hints = get_type_hints(found)
    names = [f.name for f in options_of(found)]
    plain = [f.name for f in options_of(found) if not f.kw_only]
    if len(item.args) > len(plain):
        raise _error(
            text,
            item.args[len(plain)].col_offset,
            f"{found.name} takes {len(plain)} options without their names: {', '.join(plain)}",
        )
    options: dict[str, tuple[Any, int]] = {}
    given = [(name, value, value.col_offset) for name, value in zip(plain, item.args, strict=False)]
    given += [(keyword.arg or "**", keyword.value, keyword.col_offset) for keyword in item.keywords]
    for name, value, column in given:
        if name not in names:
            near = ", ".join(names) or "none"
            raise _error(text, column, f"{found.name} has no option {name!r}; options: {near}")
        if name in options:
            raise _error(text, column, f"{found.name}: option {name!r} is given twice")
        options[name] = (_value(text, found.name, name, value, hints[name]), column)
    return options


def _value(text: str, owner: str, name: str, node: ast.expr, wanted: Any) -> Any:
    """Return a literal of the option's type (an integer is a number too); PipelineError where it has another."""
    # int | None: left out, it is the context's
    types = (
        [each for each in get_args(wanted) if each is not NoneType]
        if isinstance(wanted, UnionType)
        else [wanted]
    )
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise _error(
            text, node.col_offset, f"{owner}: {name} must be a literal, {_type_name(types)}"
        ) from None
    kinds = tuple(kind for each in types for kind in _KINDS.get(each, ((object,), ""))[0])
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in types):
        raise _error(text, node.col_offset, f"{owner}: {name} must be {_type_name(types)}, got {value!r}")
    return float(str(value)) if float in types and isinstance(value, int) else value


#: type of an option: (the types of its literals, what it is in words)
_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    float: ((int, float), "a number"),
    int: ((int,), "an integer"),
    str: ((str,), "a text"),
    bool: ((bool,), "True or False"),
    Mapping[str, float]: ((dict,), "{pattern: number}"),
}


def _type_name(types: Sequence[Any]) -> str:
    return " or ".join(_KINDS[each][1] if each in _KINDS else str(each) for each in types)
