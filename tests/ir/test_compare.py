"""How far apart outputs are: the scale, and what counts as infinitely far."""

import pytest
import torch
from torch import Tensor

from fxprune.ir import difference, tolerance
from fxprune.ir.compare import relative_difference

INF, NAN = float("inf"), float("nan")


def floats(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


@pytest.mark.parametrize(
    ("got", "expected", "relative"),
    [
        (floats(1, 2), floats(1, 2), 0.0),
        (floats(1, 3), floats(1, 2), 0.5),
        (floats(1, 2), floats(0, 0), 2e30),
        (floats(1, -INF), floats(2, -INF), 0.5),
        (floats(1, NAN), floats(2, NAN), 0.5),
        (floats(NAN), floats(NAN), 0.0),
        (floats(1, NAN), floats(1, 2), INF),
        (floats(1, 2), floats(1, NAN), INF),
        (floats(1, INF), floats(1, 2), INF),
        (floats(1, 2), floats(1, INF), INF),
        (floats(1, INF), floats(1, -INF), INF),
        (floats(1, INF), floats(1, NAN), INF),
        (floats(1, 2), floats(1, 2)[:1], INF),
        (floats(1, 2), floats(1, 2).double(), INF),
        (torch.tensor([1, 2]), torch.tensor([1, 4]), 0.5),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1.0),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 2j]), 5**-0.5),
        (torch.tensor([complex(1, NAN)]), torch.tensor([1 + 2j]), INF),
        (torch.empty(0, 3), torch.empty(0, 3), 0.0),
        (torch.empty(0, 3), torch.empty(0, 2), INF),
    ],
)
def test_relative_difference(got: Tensor, expected: Tensor, relative: float) -> None:
    assert relative_difference(got, expected) == pytest.approx(relative)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("number", [NAN, INF])
def test_no_output_hides_another(place: int, number: float) -> None:
    expected = [floats(1, 2), floats(3), floats(4)]
    got = [value.clone() for value in expected]
    got[place][0] = number
    assert (difference(got, expected), difference(expected, got)) == (INF, INF)
    assert difference(got, got) == 0.0


def test_each_output_counts_on_its_own_scale() -> None:
    assert difference([floats(1.5), floats(200.5)], [floats(1.0), floats(200.0)]) == 0.5


def test_another_number_of_outputs_is_infinitely_far() -> None:
    one = floats(1, 2)
    assert difference([], []) == 0.0
    assert (difference([one], []), difference([], [one]), difference([one], [one, one])) == (INF, INF, INF)


def test_the_coarsest_output_sets_the_tolerance() -> None:
    assert tolerance([]) == 0.0
    assert tolerance([torch.arange(2)]) == 0.0
    assert tolerance([floats(1), floats(1).half(), torch.arange(2)]) == 5e-3
