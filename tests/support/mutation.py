"""Mutants of a module: its functions with one fault each, made from the syntax tree, and put into the running process.

Only bodies of functions are mutated. What stands at the top of a module (tables, constants) has tests of its own, and a message of an error
is read by people. A mutant is put in by exchanging the code of the functions that exist already, wherever they were imported to.
"""

from __future__ import annotations

import ast
import copy
import gc
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SourceMutant:
    """One fault: the module's file, the line, the tree of the whole module with the fault, and the lines before and after."""

    path: Path
    line: int
    tree: ast.Module
    before: str
    after: str

    @property
    def text(self) -> str:
        """The fault without its line, which other changes move."""
        return f"{self.path.relative_to(ROOT)}: {self.before} → {self.after}"

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.before} → {self.after}"


def replaced(path: Path, before: str, after: str) -> SourceMutant:
    """The mutant that has another text in one place of a file, on as many lines."""
    source = path.read_text()
    assert source.count(before) == 1, f"{before!r} occurs {source.count(before)} times in {path}"
    assert before.count("\n") == after.count("\n"), "the lines that follow must keep their numbers"
    line = source[: source.index(before)].count("\n") + 1
    return SourceMutant(path, line, ast.parse(source.replace(before, after)), before, after)


def mutants(path: Path) -> list[Callable[[], SourceMutant]]:
    """All mutants of a file in the order of its lines, each made when it is called."""
    original = ast.parse(path.read_text())
    counts = [len(faults(site)) for site in _sites(original)]
    return [
        partial(_made, path, original, place, number)
        for place, count in enumerate(counts)
        for number in range(count)
    ]


def _made(path: Path, original: ast.Module, place: int, number: int) -> SourceMutant:
    tree = copy.deepcopy(original)
    node = _sites(tree)[place]
    mutated = _Exchange(node, faults(node)[number]).visit(tree)
    assert isinstance(mutated, ast.Module)
    ast.fix_missing_locations(mutated)
    before, after = _changed(original, mutated)
    return SourceMutant(path, _line(node), mutated, before, after)


def _line(node: ast.AST) -> int:
    return next(one.lineno for one in ast.walk(node) if isinstance(one, ast.stmt | ast.expr))


class _Exchange(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, ast.copy_location(new, old)

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _changed(original: ast.Module, mutated: ast.Module) -> tuple[str, str]:
    """The first line that differs, before and after."""
    old, new = (ast.unparse(tree).splitlines() for tree in (original, mutated))
    return next((a.strip(), b.strip()) for a, b in zip_longest(old, new, fillvalue="") if a != b)


def _sites(tree: ast.Module) -> list[ast.AST]:
    """The nodes of functions' bodies that may be mutated, in the order of the lines."""
    return [site for node in tree.body for site in _walk(node, inside=False)]


def _walk(node: ast.AST, inside: bool) -> Iterator[ast.AST]:
    if inside:
        yield node
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "args", "decorator_list") and not isinstance(node, ast.Call):
            continue
        deeper = inside or (isinstance(node, ast.FunctionDef) and name == "body")
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, deeper)


# --- faults ----------------------------------------------------------------------------------------------

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "iter"}


def faults(node: ast.AST) -> list[ast.AST]:
    """What may stand in the place of a node: each once, wrong in one respect."""
    rule = _FAULTS.get(type(node))
    return rule(node) if rule else []


def _compare(node: Any) -> list[ast.AST]:
    first, *rest = node.ops
    return [_but(node, ops=[other(), *rest]) for other in _COMPARISONS[type(first)]]


def _bool_op(node: Any) -> list[ast.AST]:
    other = ast.And if isinstance(node.op, ast.Or) else ast.Or
    return [
        _but(node, op=other()),
        *(_joined(node, [v for v in node.values if v is not value]) for value in node.values),
    ]


def _joined(node: ast.BoolOp, values: list[ast.expr]) -> ast.expr:
    return values[0] if len(values) == 1 else _but(node, values=values)


def _unary(node: Any) -> list[ast.AST]:
    return [] if isinstance(node.op, ast.Invert) and isinstance(node.operand, ast.Name) else [node.operand]


def _binary(node: Any) -> list[ast.AST]:
    other = _OPERATORS.get(type(node.op))
    return [_but(node, op=other())] if other else []


def _constant(node: Any) -> list[ast.AST]:
    if isinstance(node.value, bool):
        return [ast.Constant(not node.value)]
    return [ast.Constant(node.value + step) for step in (1, -1)] if isinstance(node.value, int) else []


def _statement(node: Any) -> list[ast.AST]:
    """A call for its effect, an addition in place or a raise, left out."""
    return [] if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else [ast.Pass()]


def _return(node: Any) -> list[ast.AST]:
    none = isinstance(node.value, ast.Constant) and node.value.value is None
    operand = node.value.args[:1] if isinstance(node.value, ast.Call) else []
    first = [ast.Return(each) for each in operand if not isinstance(each, ast.Starred | ast.GeneratorExp)]
    return [*([] if none or node.value is None else [ast.Return(ast.Constant(None))]), *first]


def _call(node: Any) -> list[ast.AST]:
    name = _NAMES.get(node.func.id) if isinstance(node.func, ast.Name) else None
    return [_but(node, func=ast.Name(name, ast.Load()))] if name else []


def _elements(node: Any) -> list[ast.AST]:
    """A display without one of its elements."""
    shown = len(node.elts) > 1 and not isinstance(getattr(node, "ctx", None), ast.Store)
    return [_but(node, elts=[e for e in node.elts if e is not gone]) for gone in node.elts if shown]


def _branch(node: Any) -> list[ast.AST]:
    """A condition turned round that is no comparison, and so has no fault of its own."""
    own = isinstance(node.test, ast.Compare | ast.UnaryOp)
    return [] if own else [_but(node, test=ast.UnaryOp(ast.Not(), node.test))]


def _comprehension(node: Any) -> list[ast.AST]:
    """A condition of a comprehension, left out."""
    return [_but(node, ifs=[each for each in node.ifs if each is not one]) for one in node.ifs]


def _but(node: Any, **fields: Any) -> Any:
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


_FAULTS: dict[type[ast.AST], Callable[[Any], list[ast.AST]]] = {
    ast.Compare: _compare,
    ast.BoolOp: _bool_op,
    ast.UnaryOp: _unary,
    ast.BinOp: _binary,
    ast.Constant: _constant,
    ast.Expr: _statement,
    ast.AugAssign: _statement,
    ast.Raise: _statement,
    ast.Return: _return,
    ast.Call: _call,
    ast.List: _elements,
    ast.Set: _elements,
    ast.If: _branch,
    ast.IfExp: _branch,
    ast.comprehension: _comprehension,
}


# --- a mutant in the running process ---------------------------------------------------------------------


@contextmanager
def applied(mutant: SourceMutant) -> Iterator[list[str]]:
    """The functions that the mutant changes have the faulty code meanwhile; yields their names."""
    importlib.import_module(".".join(mutant.path.relative_to(ROOT).with_suffix("").parts))
    old = _codes(compile(mutant.path.read_text(), str(mutant.path), "exec"))
    new = _codes(compile(mutant.tree, str(mutant.path), "exec"))
    changed = [(one, new[key]) for key, one in old.items() if key in new and new[key] != one]
    swaps = [(f, code) for f in _functions(mutant.path) for one, code in changed if f.__code__ == one]
    own = [(function, function.__code__) for function, _ in swaps]
    try:
        for function, code in swaps:
            function.__code__ = code
        yield [function.__qualname__ for function, _ in swaps]
    finally:
        for function, code in own:
            function.__code__ = code


def _functions(path: Path) -> list[FunctionType]:
    gc.unfreeze()  # conftest freezes what earlier modules left, and frozen objects are not listed
    return [o for o in gc.get_objects() if type(o) is FunctionType and o.__code__.co_filename == str(path)]


def _codes(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """The code of all functions within, by name and line."""
    found: dict[tuple[str, int], CodeType] = {}
    for part in code.co_consts:
        if isinstance(part, CodeType):
            found |= {(part.co_qualname, part.co_firstlineno): part} | _codes(part)
    return found
