"""An error in one line."""

import pytest

from fxprune.ir import describe_error, first_line, innermost_reason


@pytest.mark.parametrize(
    ("error", "line", "described"),
    [
        (ValueError("\n  a reason \nand more"), "a reason", "ValueError: a reason"),
        (ValueError(), "ValueError", "ValueError: no reason given"),
        (ValueError("x" * 301), "x" * 297 + "...", "ValueError: " + "x" * 297 + "..."),
        (KeyError("x" * 298), "'" + "x" * 298 + "'", "KeyError: '" + "x" * 298 + "'"),
    ],
)
def test_an_error_in_one_line(error: Exception, line: str, described: str) -> None:
    assert (first_line(error), describe_error(error)) == (line, described)


def test_the_innermost_cause_is_the_reason() -> None:
    outer, inner = RuntimeError("an export failed"), ValueError("a size is odd")
    outer.__cause__ = inner
    assert (innermost_reason(outer), innermost_reason(inner)) == ("a size is odd", "a size is odd")
