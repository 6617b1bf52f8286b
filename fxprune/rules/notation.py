"""Rules in notation: `* i, o i, o? -> * o` says which dimensions of an operator's operands and result are the same.

    letter or word   one dimension; equal words unify, and where one side has size 1 it broadcasts
    *                leading dimensions, aligned from the right and broadcast
    (h d)            a row-major product
    !  behind a word the dimension is pinned: its positions mean something to the operator
    ?  behind an operand's last word: the operand may be absent

A word of an operand that no result carries is contracted: summed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from fxprune.errors import RuleError

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
    """Read a notation once; RuleError quotes it where it can't be read."""
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
