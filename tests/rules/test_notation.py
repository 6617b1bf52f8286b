"""The notation of rules: its meaning, and the texts that are refused."""

from __future__ import annotations

import pytest

from fxprune.errors import RuleError
from fxprune.rules.notation import Term, parse_notation


def test_a_word_is_a_dimension_and_a_star_is_leading_dims() -> None:
    signature = parse_notation("* i, o i, o? -> * o")
    assert signature.operands == (
        (Term(("*",)), Term(("i",))),
        (Term(("o",)), Term(("i",))),
        (Term(("o",)),),
    )
    assert signature.results == ((Term(("*",)), Term(("o",))),)
    assert signature.optional == (False, False, True)


def test_what_no_result_carries_is_contracted() -> None:
    assert parse_notation("* i, o i, o? -> * o").contracted == ("i",)
    assert parse_notation("b m k, b k n -> b m n").contracted == ("k",)
    assert parse_notation("m, n -> m n").contracted == ()


def test_pinned_words_are_not_contracted() -> None:
    signature = parse_notation("v! d, * -> * d")
    assert signature.operands[0][0].pinned == ("v",)
    assert signature.contracted == ()


def test_brackets_make_a_product() -> None:
    assert parse_notation("b (h d) -> b h d").operands[0][1] == Term(("h", "d"))


def test_a_result_without_dims() -> None:
    assert parse_notation("k, k -> ").results == ((),)
    assert parse_notation("k, k -> ").contracted == ("k",)


def test_several_results() -> None:
    assert len(parse_notation("a b -> a, b").results) == 2


@pytest.mark.parametrize(
    ("notation", "said"),
    [
        ("a b", "has no '->': write operands -> results"),
        ("a & b -> a", "can't read 'a & b'; allowed are words, '!', '?', '*' and ( )"),
        ("a -> 3", "can't read '3'; allowed are words, '!', '?', '*' and ( )"),
    ],
)
def test_what_cannot_be_read_is_quoted(notation: str, said: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_notation(notation)
    assert (
        str(caught.value) == f"notation {notation!r} {said}"
        or str(caught.value) == f"notation {notation!r}: {said}"
    )
