"""Guards: the conditions on input sizes under which a captured graph holds, since torch.export traced it at those of one example.

A guard is text, as torch.export writes it: `L['x'].size()[3] == 12`, where `x` is the name of an input. The text is parsed and never
executed as code, for it may come from a file.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils._sympy.printers import PythonPrinter

from fxprune.errors import GuardError

GuardValues: TypeAlias = Mapping[str, Any]
"""Inputs by name: tensors, or anything else with a `shape`, and constants."""

_Term: TypeAlias = Callable[[GuardValues], Any]

_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARED: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "max": max,
    "Max": max,
    "min": min,
    "Min": min,
    "abs": abs,
    "float": float,
    "torch.sym_float": float,
    "torch._sym_sqrt": math.sqrt,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
}
_SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")
_NAME = re.compile(r"L\['(\w+)'\]")


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on the inputs, and the line from which torch.export has it ("" where it doesn't tell).

    It is `loose` where files may leave it out: beyond it the graph fails by itself, or computes what its module does.
    """

    text: str
    where: str = ""
    loose: bool = False

    def __str__(self) -> str:
        """Return the condition as a user would write it: `x.shape[3] == 12`."""
        return _NAME.sub(r"\1", _SIZE.sub(r"\1.shape[\2]", self.text))

    @property
    def names(self) -> frozenset[str]:
        """The inputs that it reads."""
        return frozenset(_NAME.findall(self.text))

    @property
    def sizes(self) -> frozenset[tuple[str, int]]:
        """The sizes that it reads: (input, dimension)."""
        return frozenset((name, int(dim)) for name, dim in _SIZE.findall(self.text))

    def holds(self, values: GuardValues) -> bool:
        """Return whether inputs meet it; those that it can't be computed from (a quotient of zero, too few dims) do not."""
        return _met(condition(self.text), values)


@cache
def condition(text: str) -> _Term:
    """Return the function that a guard's text says; ValueError names what can't be read."""
    return _term(ast.parse(text.strip(), mode="eval").body)


def _met(term: _Term, values: GuardValues) -> bool:
    try:
        return bool(term(values))
    except (ArithmeticError, AttributeError, IndexError, TypeError):
        return False


def broken(guards: Iterable[Guard], values: GuardValues) -> Guard | None:
    """Return the first guard that inputs do not meet, None where they meet all."""
    return next((guard for guard in guards if not guard.holds(values)), None)


def check(guards: Iterable[Guard], values: GuardValues) -> None:
    """Raise GuardError where inputs do not meet a guard."""
    guard = broken(guards, values)
    if guard is not None:
        raise GuardError(_message(guard, values))


def _message(guard: Guard, values: GuardValues) -> str:
    given = [f"{name} of shape {_shape(values[name])}" for name in sorted(guard.names)]
    where = f" [{guard.where}]" if guard.where else ""
    return (
        f"this program holds only for {guard}{where}, and gets {', '.join(given)}: torch.export made its graph for such inputs, and for"
        " others it may compute something else; capture again with example inputs of the sizes that you need, or with dynamic_shapes"
    )


def _shape(value: Any) -> str:
    return str(list(value.shape)) if hasattr(value, "shape") else repr(value)


def combined(guards: Sequence[Guard], placeholders: Sequence[fx.Node]) -> list[Guard]:
    """Return those of `guards` that say more than the inputs, then what the inputs show; none that reads an input which is gone."""
    known = {guard.text: guard for guard in guards}
    shown = [known.get(guard.text, guard) for guard in shape_guards(placeholders)]
    names = {node.name for node in placeholders}
    fixed = {next(iter(guard.sizes)) for guard in shown if len(guard.sizes) == 1 and "==" in guard.text}
    more = [guard for guard in guards if guard.names <= names and not (guard.sizes and guard.sizes <= fixed)]
    return list({guard.text: guard for guard in (*more, *shown)}.values())


def shape_guards(placeholders: Sequence[fx.Node]) -> tuple[Guard, ...]:
    """Return the guards that the inputs' own values tell: sizes that are numbers, sizes that depend on one another, and constants."""
    found: list[Guard] = []
    places: dict[Any, str] = {}
    for node in placeholders:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            for dim, size in enumerate(value.shape):
                found += _size_guards(f"L[{node.name!r}].size()[{dim}]", size, places)
        elif isinstance(value, (bool, int, float, str)):
            found.append(Guard(f"L[{node.name!r}] == {value!r}"))
    return tuple(found)


def _size_guards(here: str, size: Any, places: dict[Any, str]) -> list[Guard]:
    """Return the guards of one size, and record the place of its symbol."""
    if is_concrete_int(size):
        return [Guard(f"{here} == {int(size)}")]
    expression = size.node.expr
    if expression in places:
        return [Guard(f"{here} == {places[expression]}", loose=True)]  # both have one name in a file
    places[expression] = here
    known = not expression.is_Symbol and all(symbol in places for symbol in expression.free_symbols)
    return [Guard(f"{here} == {_written(expression, places)}")] if known else []


def range_guards(placeholders: Sequence[fx.Node]) -> list[Guard]:
    """Return the ranges that torch knows of the inputs' dynamic sizes."""
    texts: list[str] = []
    for node in placeholders:
        value = node.meta.get("val")
        sizes: Sequence[Any] = value.shape if isinstance(value, Tensor) else ()
        for dim, size in enumerate(sizes):
            texts += [] if is_concrete_int(size) else _range(f"L[{node.name!r}].size()[{dim}]", size.node)
    return list(map(Guard, dict.fromkeys(texts)))


def _range(here: str, size: Any) -> list[str]:
    bounds = size.shape_env.var_to_range.get(size.expr)
    if bounds is None:
        return []
    lowest = [f"{here} >= {int(bounds.lower)}"] if bounds.lower > 2 else []
    return [*lowest, *([f"{here} <= {int(bounds.upper)}"] if bounds.upper.is_Integer else [])]


def _written(expression: Any, places: Mapping[Any, str]) -> str:
    text = PythonPrinter().doprint(expression)
    for symbol in expression.free_symbols:
        text = re.sub(rf"\b{symbol}\b", places[symbol], text)
    return str(text)


def _term(node: ast.AST) -> _Term:
    """Return the function of an expression; ValueError where it is none that torch writes."""
    match node:
        case ast.Constant(value=value):
            return lambda values: value
        case ast.Attribute(value=ast.Name(id="math"), attr="inf"):
            return lambda values: math.inf
        case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str(name))):
            return lambda values: values[name]
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=tensor, attr="size"), args=[]), slice=index
        ):
            source, place = _term(tensor), _term(index)
            return lambda values: source(values).shape[place(values)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _both(_BINARY[type(op)], left, right)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARED:
            return _both(_COMPARED[type(op)], left, right)
    return _compound(node)


def _both(function: Callable[[Any, Any], Any], left: ast.AST, right: ast.AST) -> _Term:
    one, other = _term(left), _term(right)
    return lambda values: function(one(values), other(values))


def _compound(node: ast.AST) -> _Term:
    """Return the function of an expression with any number of parts."""
    match node:
        case ast.BoolOp(op=op, values=parts):
            every, terms = all if isinstance(op, ast.And) else any, list(map(_term, parts))
            return lambda values: every(term(values) for term in terms)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _term(operand)
            return lambda values: not inner(values)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _term(operand)
            return lambda values: -inner(values)
        case ast.Call(func=function, args=parts) if ast.unparse(function) in _CALLS:
            called, terms = _CALLS[ast.unparse(function)], list(map(_term, parts))
            return lambda values: called(*(term(values) for term in terms))
        case ast.IfExp(test=test, body=body, orelse=other):
            asked, yes, no = map(_term, (test, body, other))
            return lambda values: yes(values) if asked(values) else no(values)
    raise ValueError(f"{ast.unparse(node)!r} is no condition on sizes")


class InputCheck(nn.Module):
    """The guards as a module in a graph, called with the graph's inputs: GuardError where they do not meet one."""

    _is_impure = True  # FX keeps a call of it, though nothing reads the result

    def __init__(self, guards: Sequence[Guard], names: Sequence[str]) -> None:
        super().__init__()
        self.guards, self.names = tuple(guards), tuple(names)
        self._terms = [condition(guard.text) for guard in self.guards]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_terms": []}  # functions can't be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._terms = [condition(guard.text) for guard in self.guards]

    def forward(self, *inputs: Any) -> None:
        """Check the inputs, given in the order of `names`."""
        values = dict(zip(self.names, inputs, strict=True))
        for guard, term in zip(self.guards, self._terms, strict=True):
            if not _met(term, values):
                raise GuardError(_message(guard, values))
