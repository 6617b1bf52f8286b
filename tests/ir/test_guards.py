"""Guards: conditions on input sizes are read from torch's text, hold or not, and are told in a user's words."""

import pickle

import pytest
import torch

from fxprune.errors import GuardError
from fxprune.ir.guards import Guard, InputCheck, broken, check, condition

X = {"x": torch.empty(2, 8, device="meta"), "y": torch.empty(3, device="meta"), "n": 4}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("L['x'].size()[1] == 8", True),
        ("L['x'].size()[1] != 8", False),
        ("(L['x'].size()[1] // 3) == 2", True),
        ("(L['x'].size()[1] % L['y'].size()[0]) == 0", False),
        ("2*L['x'].size()[0] + -1 == L['y'].size()[0]", True),
        ("L['x'].size()[0] >= 1 and not (L['x'].size()[1] > 8)", True),
        ("L['x'].size()[0] > 2 or max(1, L['x'].size()[1]) < 9", True),
        ("(1 if L['x'].size()[0] == 2 else 0) == 1", True),
        ("math.ceil(L['x'].size()[1] / 3) == 3", True),
        ("L['x'].size()[1] <= math.inf", True),
        ("L['n'] == 4", True),
        ("L['n'] == 'yes'", False),
        ("(L['y'].size()[0] % (L['x'].size()[0] // 4)) == 0", False),  # a quotient of zero
        ("L['y'].size()[1] == 1", False),  # no such dimension
    ],
)
def test_a_guard_holds_or_not(text: str, holds: bool) -> None:
    assert Guard(text).holds(X) is holds


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getcwd() == ''",
        "L['x'].numel() == 3",
        "x == 3",
        "L['x'].size()[0] in (1, 2)",
        "1 < 2 < 3",
    ],
)
def test_what_is_no_condition_on_sizes_is_never_run(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition on sizes"):
        condition(text)


def test_a_guard_is_told_in_a_users_words() -> None:
    guard = Guard("(L['x'].size()[3] % 4) == L['n']", "net.py:3 in forward: x.view(4, -1)")
    assert str(guard) == "(x.shape[3] % 4) == n"
    assert guard.names == frozenset({"x", "n"})
    assert guard.sizes == frozenset({("x", 3)})


def test_the_first_broken_guard_is_named_with_the_sizes() -> None:
    guards = Guard("L['x'].size()[0] == 2"), Guard("L['x'].size()[1] == 9", "net.py:3")
    assert broken(guards, X) is guards[1]
    with pytest.raises(GuardError) as caught:
        check(guards, X)
    assert "holds only for x.shape[1] == 9 [net.py:3], and gets x of shape [2, 8]" in str(caught.value)


def test_a_check_in_a_graph_survives_pickling() -> None:
    made = pickle.loads(pickle.dumps(InputCheck([Guard("L['x'].size()[0] == 2")], ["x"])))
    made(torch.ones(2, 3))
    with pytest.raises(GuardError, match=r"x of shape \[3, 3\]"):
        made(torch.ones(3, 3))
