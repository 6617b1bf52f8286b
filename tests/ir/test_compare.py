"""How far apart outputs are: the scale, and what counts as infinitely far."""

import pytest
import torch
from torch import Tensor

from fxprune.ir import difference, tolerance
from fxprune.ir.compare import OutputAgreement, compare_outputs, moved_by, relative_difference, scale_of

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


def test_one_output_is_held_to_the_bar_of_its_own_type() -> None:
    """Of several, the one is told that comes nearest to its bar or exceeds it most; integers must be equal."""
    wide, coarse = floats(1, 2), floats(1, 2).to(torch.bfloat16)
    near, far = wide * (1 + 2**-18), coarse + torch.tensor([0.0, 2**-6], dtype=torch.bfloat16)
    found = compare_outputs([near, far], [wide, coarse])
    assert found == OutputAgreement(2**-18, 1e-5, 4)
    assert found.holds
    assert compare_outputs([far, near], [coarse, wide]) == found
    assert compare_outputs([wide, far], [wide, coarse]) == OutputAgreement(2**-7, 5e-2, 4)
    counts = torch.tensor([3, 4])
    assert compare_outputs([counts + 1, wide], [counts, wide]) == OutputAgreement(1 / 3, 0.0, 2)
    assert not compare_outputs([counts + 1, wide], [counts, wide]).holds


def test_a_difference_at_the_bar_holds() -> None:
    assert OutputAgreement(1e-5, 1e-5, 1).holds
    assert not OutputAgreement(1.1e-5, 1e-5, 1).holds
    assert OutputAgreement(0.0, 0.0, 0).holds


def test_only_finite_floating_numbers_of_both_are_counted() -> None:
    got, expected = floats(1, NAN, INF, 4), floats(1, 2, INF, 4)
    assert compare_outputs([got], [expected]).compared == 2
    assert compare_outputs([torch.tensor([1, 2])], [torch.tensor([1, 2])]).compared == 0
    assert compare_outputs([torch.tensor([1j, 2])], [torch.tensor([1j, 2])]).compared == 2
    assert compare_outputs([floats(1, 2)], [floats(1, 2, 3)]).compared == 0


def test_noise_is_no_difference() -> None:
    got, expected = floats(1.5, 2, 4), floats(1, 2, 3)
    assert relative_difference(got, expected, floats(0.5, 0, 0.25)) == 0.25
    assert relative_difference(got, expected, floats(0, 9, 1)) == 0.25
    assert relative_difference(got, expected, floats(1, 0, 1)) == 0.0
    assert compare_outputs([got], [expected], [floats(0.5, 0, 0.25)]).relative == 0.25


@pytest.mark.parametrize(
    ("expected", "scale"),
    [
        # the element, or the median of all numbers that differ, whichever is larger
        (floats(1, -2, 3, 1000), [2, 2, 3, 1000]),
        (floats(1, 1, 1, 1, 2, 3), [2, 2, 2, 2, 2, 3]),
        (floats(0, 4, 0, 2, 3), [3, 4, 3, 3, 3]),
        (floats(NAN, INF, 4, 2, -INF), [2, 2, 4, 2, 2]),
        (floats(0, 0), [1e-30, 1e-30]),
        (floats(NAN, INF), [1e-30, 1e-30]),
    ],
)
def test_the_scale_of_errors(expected: Tensor, scale: list[float]) -> None:
    assert scale_of(expected).tolist() == pytest.approx(scale)
    assert scale_of(expected).dtype == torch.float64


def test_a_slice_of_eight_has_a_scale_of_its_own() -> None:
    """Rows of small and of large numbers: the small ones are not measured by the large ones; columns of two are no slices."""
    small, large = torch.arange(1.0, 9.0) / 1000, torch.arange(1.0, 9.0) * 1000
    rows = torch.stack([small, large])
    assert scale_of(rows)[0].tolist() == pytest.approx([0.004] * 4 + [0.005, 0.006, 0.007, 0.008])
    assert scale_of(rows)[1].tolist() == pytest.approx(large.tolist())
    assert torch.equal(scale_of(rows.T), scale_of(rows).T)
    assert torch.equal(scale_of(rows[:, None]), scale_of(rows)[:, None])
    assert scale_of(rows[:, :7])[0].tolist() == pytest.approx([0.007] * 7)


def test_a_slice_of_which_half_is_the_same_has_none() -> None:
    def first(*row: float) -> list[float]:
        values: list[float] = scale_of(torch.stack([floats(*row), floats(10, 20, 30, 40, 50, 60, 70, 80)]))[
            0
        ].tolist()
        return values

    assert first(1, 1, 1, 1, 5, 6, 7, 8) == [20] * 8
    assert first(1, 2, 2, 2, 5, 6, 7, 9) == [2, 2, 2, 2, 5, 6, 7, 9]
    assert first(1, 2, 2, 2, 5, 6, 7, NAN) == [2, 2, 2, 2, 5, 6, 7, 2]
    assert first(2, 2, 2, 2.2, 5, 6, 7, 9) == [10] * 8
    assert first(*[NAN] * 8) == [40] * 8


def test_how_far_outputs_moved_is_of_an_output_as_a_whole() -> None:
    """A channel of 1e-30 and a mask of -inf say nothing about it; of several outputs the one that moved most counts."""
    before = torch.tensor([[3.0, 4.0, 1e-30, -INF], [0.0, 0.0, 1e-30, -INF]])
    after = torch.tensor([[3.0, 3.0, 1.0e-3, -INF], [0.0, 0.0, 1e-30, -INF]])
    assert moved_by([after], [before]) == pytest.approx(0.2, rel=1e-4)
    assert moved_by([before, after], [before, before]) == pytest.approx(0.2, rel=1e-4)
    assert moved_by([before], [before]) == 0.0
    assert moved_by([before[:1]], [before]) == INF
    assert moved_by([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == pytest.approx(1 / 10**0.5)
