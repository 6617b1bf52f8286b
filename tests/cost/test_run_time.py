"""Time of a run: operations are counted segment by segment, with or without weights, and said in words."""

import pytest
import torch
from torch import nn

from fxprune import capture
from fxprune.calibration import check_calibration
from fxprune.cost.run_time import Work, duration_text, run_work, total_work
from support.slimmable import subject

FEW = 4096
"""Bytes of weights of a segment."""


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def test_the_operations_of_two_matrices_are_counted() -> None:
    program = capture(net(), (torch.randn(4, 8),))
    data = check_calibration(program, [torch.randn(4, 8), torch.randn(4, 8)])
    (part,) = run_work(program, data)
    rows, products = 8, 8 * 16 + 16 * 4
    half = 10 / 16  # of products of a value with itself
    sums = 2 * rows * (8 * (16 + half * 8) + 16 * (4 + half * 16))
    scored = 2 * rows * half * (16**2 + 4**2)
    assert part.work.single == pytest.approx(6 * 2 * rows * products + 7 / 8 * sums + scored)
    fits = sum(4 * c**3 / 3 + 2 * c**2 * o * (5 + 2 * 4) for o, c in ((16, 8), (4, 16)))
    removed = 2 * 4**2 * 16 + 7 / 3 * 16**3 + 16**2 * (2 / 3 * 16 + 2 * 4)
    assert part.work.double == pytest.approx(sums / 8 + fits + removed)
    assert part.weights == 4 * (products + 16 + 4)


def test_moments_of_an_input_are_counted_once() -> None:
    class Three(nn.Module):
        def __init__(self, same: bool) -> None:
            super().__init__()
            self.same, self.one, self.two = same, nn.Linear(32, 4), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) + self.two(x if self.same else x.sigmoid())  # type: ignore[no-any-return]

    works = [
        total_work(run_work(capture(Three(same), (torch.randn(2, 32),)), None)) for same in (True, False)
    ]
    sums = 2 * 2 * 32**2 * 10 / 16
    assert works[1].single - works[0].single == pytest.approx(7 / 8 * sums)
    assert works[1].double - works[0].double == pytest.approx(sums / 8 + 4 * 32**3 / 3)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_segments_add_up_to_the_whole(name: str) -> None:
    program, data = subject(name)
    whole, parts = run_work(program, data), run_work(program, data, FEW)
    assert (len(whole), len(parts) > 4) == (1, True)
    assert total_work(parts).single == pytest.approx(total_work(whole).single, rel=0.05)
    assert total_work(parts).double == pytest.approx(total_work(whole).double, rel=0.2)
    assert sum(part.weights for part in parts) >= whole[0].weights


def test_a_model_without_weights_is_counted_as_well() -> None:
    program = capture(net(), (torch.randn(4, 8),))
    with torch.device("meta"):
        there = capture(net(), (torch.randn(4, 8),))
    works = [total_work(run_work(each, None, rows=2.0)) for each in (program, there)]
    assert works[0] == works[1]


def test_work_takes_time_on_this_machine() -> None:
    once, twice = Work(1e9, 1e9).seconds(), Work(2e9, 2e9).seconds()
    assert 0 < once < 60
    assert twice == pytest.approx(2 * once)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (20, "20 s"), (59, "1 min"), (720, "12 min"), (3900, "1 h 05 min")]
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
