"""Judgements: on so many held-back rows as a share of the run allows, and at the end on others."""

from typing import Any

import pytest
import torch

from fxprune.training.recovery.judge import HeldBackLoss
from fxprune.training.recovery.options import FEWEST_JUDGED, Lessons


def judge(*rows: int) -> HeldBackLoss:
    original: Any = None  # nothing is run
    return HeldBackLoss(original, [(count, [count]) for count in rows], torch.device("cpu"))


@pytest.mark.parametrize(
    ("rows", "judged", "others"),
    [(4, [4], [4]), (5, [4, 4], [4]), (12, [4, 4, 4], [4]), (16, [4, 4, 4, 4], []), (99, [4, 4, 4, 4], [])],
)
def test_the_rows_that_are_left_judge_the_end(rows: int, judged: list[int], others: list[int]) -> None:
    found = judge(4, 4, 4, 4)
    rest = found.limit(rows)
    assert [count for count, _ in found.batches] == judged
    assert (rest is None) == (not others)
    assert rest is None or [count for count, _ in rest.batches] == others


def test_a_judgement_takes_a_bounded_share_of_the_rows_that_are_trained_on() -> None:
    few, many = (Lessons(steps=1).judged_rows(steps, 4) for steps in (1300, 13_000))
    assert few == round(0.2 * 1300 * 4 / 30) == 35
    assert many == 347
    assert Lessons(steps=1).judged_rows(60, 32) == FEWEST_JUDGED == 32
