"""Rule notation: `* i, o i, o? -> * o` states which dimensions of an operator's operands and result are the same.

    letter or word   one dimension; equal words unify, and where one side has size 1 it broadcasts
    *                leading dimensions, aligned from the right and broadcast
    (h d)            a row-major product
    !  behind a word the dimension is pinned: the operator depends on its positions
    ?  behind an operand's last word: the operand may be absent

A word of an operand that no result carries is contracted: summed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from torch.fx import Node

from fxprune.dims import Dim, atom, product
from fxprune.errors import RuleError
from fxprune.ir.arguments import Argument
from fxprune.rules.facts import Dims, Shape
from fxprune.rules.op import Op

_TOKEN = re.compile(r"\*|\(|\)|[A-Za-z_]\w*!?")


@dataclass(frozen=True)
class Term:
    """One position of an operand: a word, a product of words, or `*`."""

    words: tuple[str, ...]
    pinned: tuple[str, ...] = ()

    @property
    def star(self) -> bool:
        return self.words == ("*",)


@dataclass(frozen=True)
class Signature:
    """A parsed notation: terms of each operand and of each result."""

    operands: tuple[tuple[Term, ...], ...]
    optional: tuple[bool, ...]
    results: tuple[tuple[Term, ...], ...]

    @property
    def contracted(self) -> tuple[str, ...]:
        """The words of operands that no result carries, without pinned ones."""
        carried = {word for result in self.results for term in result for word in term.words}
        pinned = {word for operand in self.operands for term in operand for word in term.pinned}
        words = [word for operand in self.operands for term in operand for word in term.words]
        return tuple(dict.fromkeys(word for word in words if word not in carried | pinned))


@cache
def parse_notation(notation: str) -> Signature:
    """Parse a notation (cached); RuleError where it is malformed."""
    left, arrow, right = notation.partition("->")
    if not arrow:
        raise RuleError(f"notation {notation!r} has no '->': write operands -> results")
    operands = [operand.strip() for operand in left.split(",")]
    return Signature(
        tuple(_terms(operand.rstrip("?"), notation) for operand in operands),
        tuple(operand.endswith("?") for operand in operands),
        tuple(_terms(result.strip(), notation) for result in right.split(",")),
    )


def _terms(text: str, notation: str) -> tuple[Term, ...]:
    if _TOKEN.sub("", text).strip():
        raise RuleError(
            f"notation {notation!r}: can't read {text!r}; allowed are words, '!', '?', '*' and ( )"
        )
    terms: list[Term] = []
    group: list[str] | None = None
    for token in _TOKEN.findall(text):
        if token == "(":
            group = []
        elif token == ")":
            terms.append(_term(group or []))
            group = None
        elif group is not None:
            group.append(token)
        else:
            terms.append(_term([token]))
    return tuple(terms)


def _term(tokens: list[str]) -> Term:
    words = tuple(token.rstrip("!") for token in tokens)
    return Term(words, tuple(token[:-1] for token in tokens if token.endswith("!")))


def broadcast(op: Op, shapes: Sequence[Shape], sizes: Sequence[int]) -> Shape:
    """Unify the dims of operands that broadcast, aligned from the right, and return the dims of a result of these sizes."""
    result: list[Dim] = []
    for place, size in enumerate(reversed(sizes)):
        aligned = [shape[-1 - place] for shape in shapes if place < len(shape)]
        carriers = [dim for dim in aligned if dim.size == size]
        for dim in carriers[1:]:
            op.unify(carriers[0], dim)
        result.append(carriers[0] if carriers and size != 1 else atom(size))
    return tuple(reversed(result))


def apply_notation(op: Op, notation: str, roles: dict[str, str]) -> Dims:
    """Apply a rule in notation, and return the dims of the result; operands are the operator's tensor arguments in schema order."""
    signature = parse_notation(notation)
    names = [n for n, a in op.arguments.items() if _is_operand(op, n, a)]
    words: dict[str, Dim] = {}
    stars: list[Shape] = []
    carriers: dict[str, list[Node]] = {}
    for terms, name in zip(signature.operands, names, strict=False):
        if op.has(name):
            _read_operand(op, terms, name, words, stars, carriers)
    star = broadcast(op, stars, _star_sizes(stars)) if stars else ()
    for word in signature.contracted:
        if word in words and word != "*":
            op.contract(words[word], *carriers[word])
    for word, role in roles.items():
        op.role(words[word], role)
    results = tuple(_write(result, words, star) for result in signature.results)
    return results[0] if len(results) == 1 else results


def _is_operand(op: Op, name: str, argument: Argument) -> bool:
    return op.has(name) or (argument.value is None and _takes_tensor(op.node, name))


def _takes_tensor(node: Node, name: str) -> bool:
    found = next(a for a in node.target._schema.arguments if a.name == name)  # type: ignore[union-attr]
    return "Tensor" in str(found.type)


def _read_operand(
    op: Op,
    terms: tuple[Term, ...],
    name: str,
    words: dict[str, Dim],
    stars: list[Shape],
    carriers: dict[str, list[Node]],
) -> None:
    shape = list(op.dims(name))
    lead = len(shape) - sum(not term.star for term in terms)
    if any(term.star for term in terms):
        stars.append(tuple(shape[:lead]))
        shape = shape[lead:]
    for term, dim in zip((t for t in terms if not t.star), shape, strict=False):
        _read_term(op, term, dim, words)
        for word in term.words:
            carriers.setdefault(word, []).append(op[name])


def _read_term(op: Op, term: Term, dim: Dim, words: dict[str, Dim]) -> None:
    if len(term.words) == 1:
        word = term.words[0]
        words[word] = op.unify(words[word], dim) if word in words else dim
    elif all(word in words for word in term.words):
        op.unify(dim, product(words[word] for word in term.words))
    for word in term.pinned:
        op.pin(words[word], f"{op.node.target} reads it by position")


def _star_sizes(stars: Sequence[Shape]) -> list[int]:
    rank = max(len(shape) for shape in stars)
    columns = [[shape[-1 - i].size for shape in stars if i < len(shape)] for i in range(rank)]
    return [max(column) if 0 not in column else 0 for column in reversed(columns)]


def _write(terms: tuple[Term, ...], words: dict[str, Dim], star: Shape) -> Shape:
    shape: list[Dim] = []
    for term in terms:
        shape.extend(star if term.star else (product(words[word] for word in term.words),))
    return tuple(shape)
